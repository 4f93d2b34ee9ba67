"""An engine with L2 tiers whose loops run, and what a client would say to it."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.pool import PoolConfig
from lmcache.l2.base import L2Adapter
from lmcache.l2.registry import parse_adapters
from lmcache.memory.pool_files import Geometry
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import split_places
from lmcache.storage.manager import StorageConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.conftest import FakeClock
from tests.engine.conftest import CHUNK_SIZE, UNIT_BYTES, Harness, slots_of

MEMORY = '{"type": "memory", "max_size_gb": 1}'
UNITS = 16
OpenTiered = Callable[..., "Tiered"]


class RunningClock(FakeClock):
    """Monotonic seconds that pass by themselves, and at once when a test says so."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def __call__(self) -> float:
        return time.monotonic() + self.now_s


class Held:
    """Calls of one method of an adapter that begin and then wait until they are let go; `begun` tells of what."""

    def __init__(self, adapter: L2Adapter, method: str) -> None:
        self._call = getattr(adapter, method)
        self._may_go_on = threading.Event()
        self.begun: list[Any] = []
        setattr(adapter, method, self._held)

    def _held(self, what: object, *args: object) -> object:
        self.begun.append(what)
        assert self._may_go_on.wait(2 * PATIENCE_S)
        return self._call(what, *args)

    def let_go(self) -> None:
        self._may_go_on.set()


@dataclass
class Tiered(Harness):
    """The harness with tiers whose loops run."""

    held: list[Held] = field(default_factory=list)

    def hold(self, method: str, adapter: int = 0) -> Held:
        """Calls of that method wait; until the end of the test at the latest."""
        self.held.append(Held(self.engine.storage.tiers()[adapter].adapter, method))
        return self.held[-1]

    def join(self, world_size: int = 1) -> None:
        for rank in range(world_size):
            self.worker(uid=1 + rank, rank=rank, world_size=world_size)
        self.scheduler(world_size=world_size)

    def write(self, digests: list[bytes], uid: int = 1, salt: str = "") -> None:
        """Store objects whose bytes tell their digest and rank, as a worker would."""
        reserved = self.reserve(digests, 999, uid, salt)
        for digest, (_, _, offset, length) in zip(digests, split_places(reserved.places), strict=True):
            self.engine.pool.view(offset, length)[:] = content(digest, uid, length)
        assert self.engine.stores.commit(self.engine.pool, self.client(uid), 999, slots_of(reserved)).num_accepted

    def ask(self, digests: list[bytes], request: str = "r", wait_s: float = PATIENCE_S, uid: int = 100) -> m.Reply:
        """A lookup, and its answer however late."""
        replies: list[m.Reply] = []
        found = self.begin(m.Lookup(request, "", b"".join(digests), wait_s), replies, uid)
        if found is not None:
            return found
        wait_until(lambda: bool(replies))
        return replies[0]

    def begin(self, asked: m.Lookup, replies: list[m.Reply], uid: int = 100) -> m.Reply | None:
        """The answer, if there is one at once; else it will be in `replies`."""

        def answer(make_reply: Callable[[], m.Reply]) -> None:
            with self.engine.mutex:
                replies.append(make_reply())

        with self.engine.mutex:
            return self.engine.lookups.lookup(self.engine.pool, self.client(uid), asked, answer)

    def wait_until_stored(self, num_objects: int, adapter: int = 0) -> None:
        tier = self.engine.storage.tiers()[adapter]
        wait_until(lambda: tier.adapter.num_objects == num_objects and not self.engine.storage.stores.num_inflight)

    def wait_until_at_rest(self) -> None:
        """A lookup may be answered, and a request be over, a moment before the last of its locks goes."""
        wait_until(lambda: self.engine.storage.prefetches.is_at_rest)

    def assert_bytes(self, found: m.Found, digests: list[bytes], uids: tuple[int, ...] = (1,)) -> None:
        places = split_places(found.places)
        assert len(places) == len(digests) * len(uids) == found.num_chunks * len(uids)
        for number, (_, _, offset, length) in enumerate(places):
            expected = content(digests[number // len(uids)], uids[number % len(uids)], length)
            assert bytes(self.engine.pool.view(offset, length)) == expected


def content(digest: bytes, uid: int, length: int) -> bytes:
    return (digest + bytes([uid]) * 7)[:length].ljust(length, digest[:1])


@contextmanager
def tiered_engines(pool_folder: pathlib.Path) -> Iterator[OpenTiered]:
    """Opens engines over one folder, one at a time, and closes them at the end."""
    opened: list[tuple[Tiered, PeriodicThreadRegistry]] = []

    def open_(
        *adapters: str, units: int = UNITS, world_size: int = 1, policy: str = "LRU", **storage: object
    ) -> Tiered:
        config = EngineConfig(
            PoolConfig(pool_folder, Geometry(units * UNIT_BYTES, 64), eviction_policy=policy),
            default_quota_bytes=1 << 30,
            chunk_size=CHUNK_SIZE,
            storage=StorageConfig(parse_adapters(adapters or (MEMORY,)), **storage),  # type: ignore[arg-type]
        )
        clock = RunningClock()
        engine = MPCacheServer(config, MetricRegistry(), lambda peer, message: None, clock)
        threads = PeriodicThreadRegistry()
        engine.storage.start(threads)
        engine.pool.wait_until_populated(30)
        tiered = Tiered(engine, clock)
        opened.append((tiered, threads))
        tiered.join(world_size)
        return tiered

    try:
        yield open_
    finally:
        for tiered, threads in opened:
            for held in tiered.held:
                held.let_go()
            tiered.engine.storage.close()
            threads.stop_all()
            tiered.engine.close(keep=False)
