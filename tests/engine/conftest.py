"""An engine without a socket: real pool, real modules, a clock that only tests move."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.management import LivenessConfig
from lmcache.engine.pool import PoolConfig
from lmcache.engine.registry import Client
from lmcache.memory.pool_files import Geometry
from lmcache.protocol import messages as m
from lmcache.telemetry.metrics import MetricRegistry
from tests.conftest import FakeClock

CHUNK_SIZE = 16
UNIT_BYTES = 4096
FACTS = b'{"model": "org/m"}'
DIGESTS = [bytes([number]) * 32 for number in range(64)]


def layout(page_bytes: int = UNIT_BYTES, is_mla: bool = False, packing: str = "p") -> KVLayout:
    """A layout whose chunk of `CHUNK_SIZE` tokens is one block of one page."""
    return KVLayout(CHUNK_SIZE, 100, (KernelGroup(("l",), page_bytes, "bfloat16", (100, 1)),), "F", packing, is_mla)


@dataclass
class Harness:
    """The engine, and what a client would say to it."""

    engine: MPCacheServer
    clock: FakeClock
    posts: list[tuple[bytes, m.Reply]] = field(default_factory=list)
    late_answers: list[Callable[[], m.Reply]] = field(default_factory=list)

    def worker(
        self, uid: int = 1, rank: int = 0, world_size: int = 1, engine_id: str = "e", attempt: int = 1,
        kv_layout: KVLayout | None = None, writing: bytes = b"", nonce: bytes | None = None,
    ) -> m.Registered:  # fmt: skip
        message = m.RegisterWorker(
            engine_id, "org/m", world_size, rank, msgspec.json.encode(kv_layout or layout()),
            self.engine.pool.files.nonce if nonce is None else nonce, attempt, writing,
        )  # fmt: skip
        return self.engine.management.register_worker(self.engine.pool, uid, b"peer", message, CHUNK_SIZE)

    def scheduler(
        self,
        uid: int = 100,
        world_size: int = 1,
        engine_id: str = "e",
        facts: bytes = FACTS,
        wants_events: bool = False,
    ) -> m.Registered:
        nonce = self.engine.pool.files.nonce
        message = m.RegisterScheduler(engine_id, "org/m", world_size, facts, nonce, wants_events=wants_events)
        return self.engine.management.register_scheduler(self.engine.pool, uid, b"peer", message, CHUNK_SIZE)

    def client(self, uid: int) -> Client:
        return self.engine.registry.clients[uid]

    def root(self, uid: int = 1) -> bytes:
        return self.engine.registry.engine_of(self.client(uid)).root

    def reserve(self, digests: list[bytes], batch_id: int = 1, uid: int = 1, salt: str = "") -> m.Reserved:
        stores, l1 = self.engine.stores, self.engine.pool.l1
        client = self.client(uid)
        return stores.reserve(l1, client, batch_id, self.root(uid), salt, b"".join(digests), client.attempt)

    def commit(self, reserved: m.Reserved, batch_id: int = 1, uid: int = 1) -> m.Committed:
        return self.engine.stores.commit(self.engine.pool, self.client(uid), batch_id, slots_of(reserved))

    def abort(self, batch_id: int = 1, uid: int = 1) -> int:
        return self.engine.stores.abort(self.engine.pool.l1, self.client(uid), batch_id)

    def store(self, digests: list[bytes], uid: int = 1, salt: str = "") -> int:
        return self.commit(self.reserve(digests, 999, uid, salt), 999, uid).num_accepted

    def lookup(
        self, digests: list[bytes], request: str = "r", uid: int = 100, lock: bool = True, salt: str = ""
    ) -> m.Found:
        lookups, pool, blob = self.engine.lookups, self.engine.pool, b"".join(digests)
        if not lock:
            return lookups.hint(pool, self.client(uid), m.Hint(request, salt, blob))
        found = lookups.lookup(pool, self.client(uid), m.Lookup(request, salt, blob), self.late_answers.append)
        assert found is not None
        return found

    def release(self, request: str = "r", num_chunks: int = 0, uid: int = 100) -> int:
        return self.engine.lookups.release(self.engine.pool.l1, self.client(uid), request, num_chunks)

    def end(self, request: str = "r", uid: int = 100) -> int:
        return self.engine.lookups.end_session(self.engine.pool.l1, self.client(uid), request)

    @property
    def l1_report(self) -> dict[str, int | float]:
        self.engine.pool.l1.check_integrity()
        return self.engine.pool.l1.report()


def slots_of(reserved: m.Reserved) -> bytes:
    """The (slot, slot word) pairs of reserved places, as a commit names them."""
    places = [reserved.places[start : start + 16] for start in range(0, len(reserved.places), 32)]
    return b"".join(places)


def open_engine(
    folder: pathlib.Path, clock: FakeClock, units: int = 16, liveness: LivenessConfig = LivenessConfig(120.0, 3600.0)
) -> Harness:
    pool = PoolConfig(folder, Geometry(units * UNIT_BYTES, 64))
    config = EngineConfig(pool, chunk_size=CHUNK_SIZE, liveness=liveness)
    posts: list[tuple[bytes, m.Reply]] = []
    engine = MPCacheServer(config, MetricRegistry(), lambda peer, message: posts.append((peer, message)), clock)
    engine.pool.wait_until_populated(30)
    return Harness(engine, clock, posts)


@pytest.fixture
def harness(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[Harness]:
    harness = open_engine(pool_folder, clock)
    yield harness
    harness.engine.close(keep=False)


@pytest.fixture
def joined(harness: Harness) -> Harness:
    """One engine of one rank, whole: worker 1 and scheduler 100."""
    harness.worker()
    harness.scheduler()
    return harness
