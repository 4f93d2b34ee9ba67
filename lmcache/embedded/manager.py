"""What the internal API reaches in one process: a scheduler's half, a worker's half, or an engine on its own.

Composed by whoever builds that process. Parts that come later (a worker's engine and pages, a scheduler's own
engine) are asked for anew with every call. Scripts of operators use it by the documented names. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.embedded.lookup.base import LookupClient, LookupServer, LookupSwitch
from lmcache.embedded.operations import CacheOperations
from lmcache.errors import LookupSwitchError
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry

SCHEDULER = "scheduler"
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class EngineMetadata:
    """What an operator may ask about one half; its public attributes are the names that /meta knows.

    `kv_shape`: `(layers, K and V, tokens of a chunk, KV heads, head size)`. `first_rank`: who stores where all ranks
    hold the same.
    """

    model_name: str
    world_size: int
    local_world_size: int
    worker_id: int
    local_worker_id: int
    kv_dtype: str
    kv_shape: tuple[int, ...]
    use_mla: bool
    role: str
    first_rank: int
    served_model_name: str
    chunk_size: int
    kv_layer_groups_manager: object
    engine_id: str
    kv_connector_extra_config: Mapping[str, object] = field(default_factory=dict)


class InferenceEngine(Protocol):
    """What is known of the engine around us. Both raise LMCacheError where it cannot be told."""

    def info(self) -> dict[str, object]: ...

    def version(self) -> dict[str, object]: ...


@runtime_checkable
class HasClient(Protocol):
    """The `LookupSwitch` of a scheduler."""

    @property
    def current(self) -> LookupClient | None:
        """The outermost client; None while there is none."""


@runtime_checkable
class HasServer(Protocol):
    """The `LookupSwitch` of a worker."""

    @property
    def server(self) -> LookupServer | None:
        """The one that answers lookups; None while none does."""


@runtime_checkable
class ChunkStatistics(Protocol):
    """A lookup client that counts chunks."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def reset(self) -> None: ...

    def status(self) -> dict[str, object]:
        """Under the documented names."""


@dataclass(slots=True)
class EmbeddedManager:
    """`find_engine` and `find_kv_tensors` answer None where there is none now. `lookup` is None only where
    this process takes no part in lookups. `logs_slots`: whether stores and retrieves write their slots to the log."""

    config: LMCacheEngineConfig
    lmcache_engine_metadata: EngineMetadata
    metrics: MetricRegistry
    threads: PeriodicThreadRegistry
    find_engine: Callable[[], CacheOperations | None]
    find_kv_tensors: Callable[[], KVTensors | None]
    lookup: LookupSwitch | None = None
    inference: InferenceEngine | None = None
    logs_slots: bool = False

    @property
    def lmcache_engine(self) -> CacheOperations | None:
        return self.find_engine()

    # Pages

    @property
    def kv_tensors(self) -> KVTensors | None:
        return self.find_kv_tensors()

    @property
    def kv_caches(self) -> Mapping[str, KVTensor] | None:
        """The pages by layer name; None where this process has none, or none yet."""
        tensors = self.kv_tensors
        return tensors.layers if tensors is not None else None

    # Lookups

    @property
    def lookup_client(self) -> LookupClient | None:
        """The outermost; None on a worker, and while there is none."""
        if self.lmcache_engine_metadata.role != SCHEDULER or not isinstance(self.lookup, HasClient):
            return None
        return self.lookup.current

    @property
    def lookup_server(self) -> LookupServer | None:
        """None on a scheduler, and while there is none."""
        if self.lmcache_engine_metadata.role != WORKER or not isinstance(self.lookup, HasServer):
            return None
        return self.lookup.server

    def get_lookup_info(self) -> dict[str, object]:
        """Class names of client and server, "None" for what is not there, and the role."""
        client, server = self._switch().info()
        return {"client": client, "server": server, "role": self.lmcache_engine_metadata.role}

    def close_lookup(self) -> dict[str, object]:
        """As `LookupSwitch.close`; the old one's name."""
        return {"old": self._switch().close()}

    def create_lookup(self, dryrun: bool = False) -> dict[str, object]:
        """As `LookupSwitch.create`; the new one's name."""
        return {"new": self._switch().create(dryrun), **({"dryrun": True} if dryrun else {})}

    def recreate_lookup(self) -> dict[str, object]:
        """As `LookupSwitch.recreate`; both names."""
        old, new = self._switch().recreate()
        return {"old": old, "new": new}

    def _switch(self) -> LookupSwitch:
        if self.lookup is None:
            raise LookupSwitchError("this process takes no part in lookups")
        return self.lookup

    # The engine around us. Both raise LMCacheError where it cannot be told, and are empty where there is none.

    def get_inference_info(self) -> dict[str, object]:
        return {} if self.inference is None else self.inference.info()

    def get_inference_version(self) -> dict[str, object]:
        return {} if self.inference is None else self.inference.version()
