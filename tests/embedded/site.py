"""An embedded engine over synthetic pages, whose every byte follows from its chunk's digest."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lmcache.core.keys import ObjectKey
from lmcache.embedded.config import Backend, EmbeddedConfig, Rank
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.jobs import Prompt, RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.embedded.routing import L1_BACKEND
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.l2.registry import parse_adapter_object
from lmcache.telemetry.periodic import PeriodicThread
from lmcache.telemetry.steps import NO_STEPS, StepObserver
from lmcache.testing.paged_memory import BLOCKS_PER_CHUNK, CHUNK_BYTES, CHUNK_SIZE, PagedMemory, digest_of, make_layout
from lmcache.testing.waiting import wait_until

ROOT = digest_of("root")
NUM_BLOCKS = 64
PATIENCE_S = 20.0


def config_of(num_chunks: int = 8, **more: Any) -> EmbeddedConfig:
    given = {"drain_timeout_s": PATIENCE_S} | more
    return EmbeddedConfig(chunk_size=CHUNK_SIZE, pool_bytes=num_chunks * CHUNK_BYTES, **given)


def backend(name: str, **settings: Any) -> Backend:
    return Backend(name, parse_adapter_object(settings, name))


def digests_of(names: str) -> tuple[bytes, ...]:
    """One chunk per letter."""
    return tuple(digest_of(name) for name in names)


def prompt_of(names: str, salt: str = "") -> Prompt:
    return Prompt(ROOT, salt, digests_of(names))


def blocks_of(place: int) -> tuple[int, ...]:
    """The blocks of the `place`-th chunk of the pages."""
    return tuple(range(place * BLOCKS_PER_CHUNK, (place + 1) * BLOCKS_PER_CHUNK))


class Site:
    """The engine and its pages. Chunks are named by letters."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: EmbeddedConfig,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
        rank: int = 0,
        source_rank: int = 0,
        meter: EmbeddedMetrics | None = None,
    ) -> None:
        self.memory = PagedMemory(source_rank, NUM_BLOCKS)
        place = Rank("model", 2, rank, source_rank, make_layout(NUM_BLOCKS))
        self.engine = EmbeddedEngine(config, place, CpuCopier([self.memory.pages]), folder, clock, steps, meter=meter)
        self.engine.start()
        self.engine.pool.wait_until_populated(PATIENCE_S)
        # A first run that comes late would do what a test lets happen later.
        self.wait_until(lambda: all(thread.total_runs for thread in self.engine.threads.all()))

    def store(self, names: str, salt: str = "") -> str:
        """Compute these chunks and store them; the names of those that are new."""
        rows = [blocks_of(place) for place in range(len(names))]
        for digest, row in zip(digests_of(names), rows, strict=True):
            self.memory.fill(digest, row)
        stored = self.engine.store(StoreJob(ROOT, salt, digests_of(names), tuple(rows)))
        for row in rows:
            self.memory.poison(row)  # whatever is read after this was read too late
        return "".join(name for name in names if digest_of(name) in stored)

    def lookup(self, names: str, lookup_id: str = "lookup", wait_s: float = 0.0, salt: str = "") -> int:
        return self.engine.lookup(lookup_id, prompt_of(names, salt), wait_s)

    def retrieve(self, names: str, lookup_id: str = "lookup", salt: str = "") -> str:
        """Empty, or why it failed. Bytes that arrive are checked."""
        rows = [blocks_of(place) for place in range(len(names))]
        for row in rows:
            self.memory.poison(row)
        parts = [RetrievePart(digest, 0, row) for digest, row in zip(digests_of(names), rows, strict=True)]
        failure = self.engine.retrieve(RetrieveJob(lookup_id, ROOT, salt, tuple(parts)))
        if not failure:
            assert self.num_wrong(names, rows) == 0
        return failure

    def num_wrong(self, names: str, rows: Sequence[Sequence[int]]) -> int:
        return sum(self.memory.count_wrong(digest, row) for digest, row in zip(digests_of(names), rows, strict=True))

    def loop(self, name: str) -> PeriodicThread:
        """A controller's thread: `prefetch` or `store`."""
        thread = self.engine.threads.get(f"lmcache-l2-{name}")
        assert thread is not None
        return thread

    def settle(self) -> None:
        """Who waits for a fetch is told a moment before the controller lets go of what it had locked for it."""
        self.wait_until(lambda: self._is_settled)

    @property
    def _is_settled(self) -> bool:
        report = self.engine.storage.prefetches.report()
        return not report["submission_queue_size"] and not report["completed_results_count"]

    @property
    def num_locked(self) -> int:
        self.settle()
        return int(self.engine.l1.report()["read_locked_count"])

    @property
    def num_objects(self) -> int:
        self.settle()
        return int(self.engine.l1.report()["total_object_count"])

    def l1_order(self) -> tuple[list[bytes], list[bytes]]:
        """Digests that L1 holds by their last use, and those that may go in the order of eviction (an LRU's)."""
        state = self.engine.l1._state
        scanned = state.slots.records.scan()
        recency = dict(zip(scanned.slots.tolist(), scanned.recency.tolist(), strict=True))
        ready = {slot: digest for _, digest, slot in state.ready_slots()}
        used = [ready[slot] for slot in sorted(ready, key=recency.__getitem__)]
        return used, [ready[slot] for slot in state.policy.victims()]

    def key(self, name: str) -> ObjectKey:
        return ObjectKey(digest_of(name), "model", *self.engine.rank.rank_group)

    def clear_l1(self) -> None:
        self.settle()
        self.engine.clear([L1_BACKEND])

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        wait_until(is_so, PATIENCE_S)

    def wait_until_stored(self) -> None:
        """Nothing is on its way to a tier."""
        assert self.engine.storage.stores.wait_until_empty(PATIENCE_S)


@contextmanager
def opened(folder: pathlib.Path, config: EmbeddedConfig, **more: Any) -> Iterator[Site]:
    site = Site(folder, config, **more)
    try:
        yield site
        site.engine.l1.check_integrity()
    finally:
        site.engine.close()
    assert not folder.exists()
