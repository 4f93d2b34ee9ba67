"""What the internal API reaches in one process: a scheduler's half, a worker's half, or an engine on its own.

Composed by whoever builds that process. Parts that come later (a worker's engine and pages, a scheduler's own
engine) are asked for anew with every call. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.kv_tensors import KVTensors
from lmcache.embedded.lookup.base import LookupClient, LookupSwitch
from lmcache.embedded.operations import CacheOperations
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
    metadata: EngineMetadata
    metrics: MetricRegistry
    threads: PeriodicThreadRegistry
    find_engine: Callable[[], CacheOperations | None]
    find_kv_tensors: Callable[[], KVTensors | None]
    lookup: LookupSwitch | None = None
    inference: InferenceEngine | None = None
    logs_slots: bool = False

    @property
    def engine(self) -> CacheOperations | None:
        return self.find_engine()

    @property
    def kv_tensors(self) -> KVTensors | None:
        return self.find_kv_tensors()

    @property
    def lookup_client(self) -> LookupClient | None:
        """The outermost; None on a worker, and while there is none."""
        if self.metadata.role != SCHEDULER or not isinstance(self.lookup, HasClient):
            return None
        return self.lookup.current
