"""The real application around a real engine with L2 adapters, asked in this process; adapters that only tests have."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx

from lmcache.config.scripts import ScriptSettings
from lmcache.core.keys import ObjectKey
from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.pool import PoolConfig
from lmcache.http.registry import HTTPAPIRegistry
from lmcache.l2.base import AdapterContext, Deleted, KeyPage, L2Adapter, Loaded, Source, StoreStatus, Usage
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.l2.registry import parse_adapters
from lmcache.memory.pool_files import Geometry
from lmcache.server.http_app import make_app
from lmcache.storage.breaker import BreakerConfig
from lmcache.storage.manager import StorageConfig
from lmcache.storage.tier import Tier, TierConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from tests.http.no_engine import NoLifecycle

T = TypeVar("T")

CHUNK_SIZE = 16
UNIT_BYTES = 4096
KV_RANK = 0x01000100
# An adapter that failed is left alone for longer than a test takes.
TIER = TierConfig(breaker=BreakerConfig(pause_s=600.0, pause_s_max=600.0))


def make_key(number: int, model_name: str = "org/m", cache_salt: str = "", kv_rank: int = KV_RANK) -> ObjectKey:
    return ObjectKey(number.to_bytes(32, "big"), model_name, kv_rank, 0, cache_salt)


def encoded(key: ObjectKey) -> dict[str, Any]:
    return {
        "chunk_hash_hex": key.chunk_hash.hex(), "model_name": key.model_name, "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id, "cache_salt": key.cache_salt,
    }  # fmt: skip


@dataclass
class StorageSite:
    """One thread's. `ask` sends one request by a client on this machine."""

    engine: MPCacheServer
    threads: PeriodicThreadRegistry = field(default_factory=PeriodicThreadRegistry)

    def __post_init__(self) -> None:
        self.app = make_app({}, HTTPAPIRegistry("lmcache.v1.multiprocess.http_apis"), NoLifecycle())
        self.app.state.script_settings = ScriptSettings()
        self.app.state.engine = self.engine

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def send(http: httpx.AsyncClient) -> httpx.Response:
            return await http.request(method, url, **options)

        return self.talk(send)

    def talk(self, conversation: Callable[[httpx.AsyncClient], Coroutine[Any, Any, T]]) -> T:
        """Several requests on one event loop."""

        async def run() -> T:
            transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as http:
                return await conversation(http)

        return asyncio.run(run())

    def tier(self, selector: str | None = None) -> Tier:
        return self.engine.storage.find_l2_adapter(selector)

    def put(self, keys: Sequence[ObjectKey], data: bytes = b"kv" * 50, selector: str | None = None) -> None:
        for key in keys:
            assert self.tier(selector).adapter.store(key, Source(memoryview(data))) is StoreStatus.STORED

    def listed(self, query: str = "") -> list[dict[str, Any]]:
        """Every key a walk over the pages finds."""
        found, token = [], ""
        while True:
            page = self.ask("GET", f"/l2/keys?page_token={token}&{query}").json()
            found += [entry["key"] for entry in page["entries"]]
            if page["next_page_token"] is None:
                return found
            token = page["next_page_token"]

    def delete(self, keys: Sequence[ObjectKey], query: str = "") -> httpx.Response:
        return self.ask("DELETE", f"/l2{query}", json={"keys": [encoded(key) for key in keys]})

    def close(self) -> None:
        self.engine.storage.close()
        self.threads.stop_all()
        self.engine.close(keep=False)


@contextmanager
def storage_site(
    folder: pathlib.Path, adapters: Sequence[str] = (), eviction_policy: str = "LRU", opens: bool = True
) -> Iterator[StorageSite]:
    """`adapters` as on the command line. `opens` False: they stay as they are made."""
    pool = PoolConfig(folder, Geometry(64 * UNIT_BYTES, 256), eviction_policy=eviction_policy)
    config = EngineConfig(
        pool, CHUNK_SIZE, storage=StorageConfig(parse_adapters(adapters), tier=TIER, drain_timeout_s=5.0)
    )
    site = StorageSite(MPCacheServer(config, MetricRegistry(), lambda peer, message: None))
    try:
        site.engine.pool.wait_until_populated(30)
        if opens:
            site.engine.storage.start(site.threads)
        yield site
    finally:
        site.close()


class SilentL2Adapter(L2Adapter):
    """The least that an adapter of somebody else may be: it stores, but neither lists nor deletes."""

    def __init__(self, config: MemoryConfig, context: AdapterContext) -> None:
        super().__init__(context)
        self.objects: dict[ObjectKey, bytes] = {}

    def open(self) -> None:
        pass

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        self.objects[key] = bytes(source.data)
        return StoreStatus.STORED

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        return [key in self.objects for key in keys]

    def release(self, keys: Sequence[ObjectKey]) -> None:
        pass

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        target[:] = self.objects[key]
        return Loaded(len(target))

    def load_whole(self, key: ObjectKey) -> memoryview:
        return memoryview(self.objects[key])

    def usage(self) -> Usage:
        return Usage(sum(map(len, self.objects.values())))

    def close(self) -> None:
        self.objects.clear()


class FaultyL2Adapter(MockL2Adapter):
    """Raises `error` instead of doing what an operator asks for. `gate`: opening and listing wait for it."""

    supported_operations = ("fail", "count")

    def __init__(self, config: MemoryConfig, context: AdapterContext) -> None:
        super().__init__(config, context)
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.num_inside = self.most_inside = self.num_waiting = 0
        self.counting = threading.Lock()
        self._arriving = threading.Lock()

    def open(self) -> None:
        self.gate.wait(30)

    def _meet(self) -> None:
        if self.error is not None:
            raise self.error

    def delete(self, keys: Sequence[ObjectKey]) -> Deleted:
        self._meet()
        return super().delete(keys)

    def list_l2_keys(self, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        self._meet()
        with self._arriving:
            self.num_waiting += 1
        self.gate.wait(30)
        return super().list_l2_keys(model_name, page_size, page_token)

    def reconfigure(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        """`count`: how many threads were in here at once; anything else fails."""
        self._meet()
        if operation != "count":
            return super().reconfigure(operation, payload)
        with self.counting:
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
        threading.Event().wait(0.02)
        with self.counting:
            self.num_inside -= 1
        return {"payload": dict(payload), "most_inside": self.most_inside, "adapter_index": 99}


def plugin_modules() -> dict[str, Any]:
    """By type; `dax` is there for the rules of its bodies."""
    classes = {"silent": SilentL2Adapter, "faulty": FaultyL2Adapter, "dax": FaultyL2Adapter}
    return {name: SimpleNamespace(TYPE_NAMES=(name,), Config=MemoryConfig, make=made) for name, made in classes.items()}


MOCK = '{"type": "mock", "max_size_gb": 1}'
MEMORY = '{"type": "memory", "max_size_gb": 0.5}'
SILENT = '{"type": "silent", "max_size_gb": 1}'
FAULTY = '{"type": "faulty", "max_size_gb": 1}'
FAKE_DAX = '{"type": "dax", "max_size_gb": 1}'
WRAPPED_MOCK = '{"type": "mock", "max_size_gb": 1, "serde": {"type": "zstd"}}'
