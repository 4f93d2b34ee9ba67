"""Stand-ins for the parts of an in-process engine that operators reach: they remember, and can be told to fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.embedded.manager import SCHEDULER, EmbeddedManager, EngineMetadata
from lmcache.embedded.operations import LoadedChunks
from lmcache.errors import ConfigError, LMCacheError, LookupSwitchError, UnknownBackendError
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry

L1, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"
_CLASS_OF = {L1: "L1Manager", DISK: "FSAdapter", REMOTE: "FSAdapter"}


class FakeEngine:
    """`CacheOperations` over plain numbers. `error`: raised by every call while it is set."""

    def __init__(self, backends: Sequence[str] = (L1, REMOTE), chunk_size: int = 40) -> None:
        self.error: Exception | None = None
        self.chunk_size = chunk_size
        self.num_objects = dict.fromkeys(backends, 5)
        self.stored: set[int] = set()
        self.loaded = LoadedChunks(95, 100, ("key1", "key2"))
        self._is_frozen = False
        self._has_hot_cache = True
        self._bypassed: set[str] = set()

    def clear(self, locations: Collection[str] | None = None) -> int:
        self._fail()
        names = [name for name in self.num_objects if locations is None or name in locations]
        removed = sum(self.num_objects[name] for name in names)
        self.num_objects.update(dict.fromkeys(names, 0))
        return removed

    @property
    def is_frozen(self) -> bool:
        self._fail()
        return self._is_frozen

    def freeze(self, is_frozen: bool) -> None:
        self._fail()
        self._is_frozen = is_frozen

    @property
    def has_hot_cache(self) -> bool:
        self._fail()
        return self._has_hot_cache

    def set_hot_cache(self, is_on: bool) -> None:
        self._fail()
        self._has_hot_cache = is_on

    def backends(self) -> dict[str, str]:
        self._fail()
        return {name: _CLASS_OF[name] for name in self.num_objects}

    def bypassed(self) -> list[str]:
        self._fail()
        return sorted(self._bypassed)

    def bypass(self, name: str, is_bypassed: bool) -> bool:
        self._known(name)
        was_bypassed = name in self._bypassed
        (self._bypassed.add if is_bypassed else self._bypassed.discard)(name)
        return was_bypassed

    def close_backend(self, name: str) -> None:
        self._known(name)
        if name == L1:
            raise ConfigError(f"{L1} cannot be closed")
        del self.num_objects[name]

    def create_backends(self) -> dict[str, str]:
        """Those of `_CLASS_OF` are what the configuration asks for."""
        self._fail()
        missing = [name for name in _CLASS_OF if name not in self.num_objects]
        self.num_objects.update(dict.fromkeys(missing, 0))
        return {name: _CLASS_OF[name] for name in missing}

    def recreate_backend(self, name: str) -> dict[str, str]:
        self._known(name)
        return {name: _CLASS_OF[name]}

    def store_mock(self, token_ids: Sequence[int]) -> int:
        self._fail()
        num_chunks = len(token_ids) // self.chunk_size
        self.stored.update(token_ids[: num_chunks * self.chunk_size])
        return num_chunks

    def retrieve_mock(self, token_ids: Sequence[int]) -> int:
        self._fail()
        found = 0
        while found < len(token_ids) and token_ids[found] in self.stored:
            found += 1
        return found

    def load_fs_chunks(self, config_path: str, num_chunks_max: int | None) -> LoadedChunks:
        self._fail()
        most = self.loaded.num_loaded if num_chunks_max is None else num_chunks_max
        return LoadedChunks(min(self.loaded.num_loaded, most), self.loaded.total_files, self.loaded.failed_keys)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def _known(self, name: str) -> None:
        self._fail()
        if name not in self.num_objects:
            raise UnknownBackendError(name)


class FakeClient:
    """A `LookupClient` that finds nothing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_closed = False

    def layouts(self) -> list[KVLayout] | None:
        return None

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        return 0

    def forget(self, lookup_id: str) -> None:
        """It remembers none."""

    def name(self) -> str:
        return self._name

    def end_lookups(self) -> None:
        """None is under way."""

    def close(self) -> None:
        self.is_closed = True


class CountingClient(FakeClient):
    """One that counts chunks. `error`: raised by every call for operators while it is set."""

    def __init__(self) -> None:
        super().__init__("ChunkStatisticsLookupClient(LMCacheLookupClient)")
        self.error: Exception | None = None
        self.is_collecting = False
        self.num_chunks = 1000

    def start(self) -> None:
        self._fail()
        self.is_collecting = True

    def stop(self) -> None:
        self._fail()
        self.is_collecting = False

    def reset(self) -> None:
        self._fail()
        self.num_chunks = 0

    def status(self) -> dict[str, object]:
        self._fail()
        return {
            "is_collecting": self.is_collecting, "total_chunks": self.num_chunks, "unique_chunks": self.num_chunks // 2,
            "timestamp": 1706745600.0, "auto_exit_enabled": True, "auto_exit_timeout_hours": 24.0,
            "auto_exit_target_unique_chunks": 1000,
        }  # fmt: skip

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class FakeLookups:
    """The `LookupSwitch` of one half: `next_name` is what the configuration of now asks for."""

    def __init__(self, role: str, first: FakeClient | None, next_name: str) -> None:
        self._is_client = role == SCHEDULER
        self.current = first
        self.next_name = next_name
        self.error: Exception | None = None

    @property
    def server(self) -> FakeClient | None:
        return None if self._is_client else self.current

    def info(self) -> tuple[str, str]:
        self._fail()
        name = self._name()
        return (name, "None") if self._is_client else ("None", name)

    def close(self) -> str:
        self._fail()
        if self.current is None:
            raise LookupSwitchError(f"lookup {'client' if self._is_client else 'server'} not available")
        old, self.current = self.current, None
        old.close()
        return old.name()

    def create(self, is_dry_run: bool) -> str:
        self._fail()
        if not is_dry_run:
            self.current = FakeClient(self.next_name)
        return self.next_name

    def recreate(self) -> tuple[str, str]:
        return self.close(), self.create(False)

    def _name(self) -> str:
        return "None" if self.current is None else self.current.name()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class FakeInference:
    """An inference engine of version 0.8.0. `error`: raised while it is set."""

    def __init__(self) -> None:
        self.error: LMCacheError | None = None

    def info(self) -> dict[str, object]:
        return {**self.version(), "model_config": {"model": "m", "head_size": 64}}

    def version(self) -> dict[str, object]:
        if self.error is not None:
            raise self.error
        return {"vllm_version": "0.8.0"}


def documented_pages() -> KVTensors:
    """Two layers of two blocks of two tokens, whose MD5s are known."""
    shape = (2, 2, 2, 1, 2)
    counted = np.arange(16, dtype=np.float32).reshape(shape)
    layers = {"l.1": counted, "l.0": np.ones(shape, np.float32)}
    return KVTensors({name: KVTensor(array, "torch.float32", "cpu") for name, array in layers.items()})


def make_metadata(role: str, worker_id: int = 0) -> EngineMetadata:
    return EngineMetadata(
        model_name="m", world_size=2, local_world_size=2, worker_id=worker_id, local_worker_id=worker_id,
        kv_dtype="torch.bfloat16", kv_shape=(32, 2, 256, 8, 128), use_mla=False, role=role, first_rank=0,
        served_model_name="m", chunk_size=256, kv_layer_groups_manager=None, engine_id="e",
        kv_connector_extra_config={"lmcache_rpc_port": 0, "api_token": "secret"},
    )  # fmt: skip


def make_manager(role: str, values: Mapping[str, object] | None = None, worker_id: int = 0) -> FakeManager:
    """As the halves of an engine have them: a scheduler with a client, a worker with engine, pages and server."""
    return FakeManager(role, LMCacheEngineConfig(values or {}), worker_id)


class FakeManager(EmbeddedManager):
    """Its parts are public, so that a test can take them away."""

    fake_engine: FakeEngine | None
    pages: KVTensors | None

    def __init__(self, role: str, config: LMCacheEngineConfig, worker_id: int) -> None:
        is_client = role == SCHEDULER
        self.fake_engine = None if is_client else FakeEngine()
        self.pages = None if is_client else documented_pages()
        first = "HitLimitLookupClient(LMCacheBypassLookupClient)" if is_client else "LMCacheLookupServer"
        following = "LMCacheLookupClient" if is_client else "LMCacheAsyncLookupServer"
        self.lookups = FakeLookups(role, FakeClient(first), following)
        self.fake_inference = FakeInference()
        super().__init__(
            config=config, lmcache_engine_metadata=make_metadata(role, worker_id), metrics=MetricRegistry(),
            threads=PeriodicThreadRegistry(), find_engine=lambda: self.fake_engine, find_kv_tensors=lambda: self.pages,
            lookup=self.lookups, inference=self.fake_inference,
        )  # fmt: skip
