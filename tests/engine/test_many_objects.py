"""A hundred thousand objects: what operators ask for lets go of the engine's mutex again and again.

Counted are turns at the mutex and what is done in one; the pool's pages are not taken, as nobody writes to them.
"""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace, TracebackType

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.engine import cache_server
from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.pool import PoolConfig
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.memory.pool_files import Geometry, PoolFiles
from lmcache.memory.records import RecordTable, SlotRecord
from lmcache.protocol.blobs import split_places
from lmcache.telemetry.metrics import MetricRegistry
from tests.conftest import FakeClock, new_pool_folder

NUM_OBJECTS, NUM_RARE = 100_000, 10
# What may happen between two moments at which others get the mutex.
OBJECTS_PER_TURN = 1024
UNIT_BYTES = 4096
RANK = (1 << 24 | 1 << 8, 0)
COMMON, RARE = NamespaceKey("org/m", bytes(32), ""), NamespaceKey("org/rare", bytes(32), "tenant")


class CountingMutex:
    """Keeps how much `progress` grew in each turn."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.progress: Callable[[], int] = lambda: 0
        self.turns: list[int] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._begun = self.progress()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self.turns.append(self.progress() - self._begun)
        self._lock.release()

    @contextmanager
    def counting(self, progress: Callable[[], int]) -> Iterator[list[int]]:
        """What was done in each turn meanwhile."""
        self.progress, self.turns = progress, []
        yield self.turns
        self.progress = lambda: 0


class Crowded:
    """An engine, its mutex, and how many records anybody has read from its index."""

    def __init__(self, engine: MPCacheServer, mutex: CountingMutex) -> None:
        self.engine = engine
        self.mutex = mutex
        self.num_reads = 0

    def store(self, key: NamespaceKey, first: int, count: int) -> None:
        l1 = self.engine.pool.l1
        digests = [
            key.model_name.encode().ljust(24) + number.to_bytes(8, "big") for number in range(first, first + count)
        ]
        reserved = l1.reserve(key, RANK, 1, digests, UNIT_BYTES)
        places = [Place(slot, word) for slot, word, _, _ in split_places(l1.places(reserved.slots))]
        assert len(l1.commit(1, places)) == count

    def fill(self, num_objects: int) -> None:
        """The rare ones among the others, at even distances."""
        step = num_objects // NUM_RARE
        for first in range(0, num_objects, step):
            self.store(RARE, first, 1)
            self.store(COMMON, first, step - 1)

    def list_all(self, model_name: str | None, page_size: int = 5000) -> list[ObjectKey]:
        keys: list[ObjectKey] = []
        token: str | None = None
        while True:
            page = self.engine.l1_objects.page(model_name, page_size, token)
            keys += [key for key, _ in page.entries]
            if page.next_page_token is None:
                return keys
            token = page.next_page_token


@contextmanager
def open_crowded(folder: pathlib.Path, num_objects: int = NUM_OBJECTS) -> Iterator[Crowded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_server, "threading", SimpleNamespace(RLock=CountingMutex, Lock=threading.Lock))
        patch.setattr(PoolFiles, "populate", lambda files, offset, length: None)
        geometry = Geometry(num_objects * UNIT_BYTES, num_objects + 64)
        engine = MPCacheServer(
            EngineConfig(PoolConfig(folder, geometry)), MetricRegistry(), lambda *_: None, FakeClock()
        )
        try:
            engine.pool.wait_until_populated(30)
            assert isinstance(engine.mutex, CountingMutex)
            crowded = Crowded(engine, engine.mutex)
            crowded.fill(num_objects)
            read = RecordTable.read

            def counted(records: RecordTable, slot: int) -> SlotRecord:
                crowded.num_reads += 1
                return read(records, slot)

            patch.setattr(RecordTable, "read", counted)
            yield crowded
        finally:
            engine.close(keep=False)


@pytest.fixture(scope="module")
def crowded() -> Iterator[Crowded]:
    """For those who change nothing."""
    with open_crowded(new_pool_folder()) as found:
        yield found


def test_removals_take_a_few_in_each_turn(pool_folder: pathlib.Path) -> None:
    with open_crowded(pool_folder) as crowded:
        l1, num_deleted = crowded.engine.pool.l1, 5000
        page = crowded.engine.l1_objects.page(None, num_deleted, None)
        with crowded.mutex.counting(lambda: -l1.memory_bytes()[0] // UNIT_BYTES) as turns:
            outcome = crowded.engine.l1_objects.delete([key for key, _ in page.entries], force=False)
            assert sum(turns) == len(outcome.deleted) == num_deleted
            assert crowded.engine.clear() == NUM_OBJECTS - num_deleted
        assert sum(turns) == NUM_OBJECTS
        assert max(turns) <= OBJECTS_PER_TURN


def test_a_listing_reads_a_few_in_each_turn(crowded: Crowded) -> None:
    with crowded.mutex.counting(lambda: crowded.num_reads) as turns:
        keys = crowded.list_all(None)
    assert len(set(keys)) == len(keys) == NUM_OBJECTS
    assert NUM_OBJECTS <= sum(turns) < 2 * NUM_OBJECTS
    assert max(turns) <= OBJECTS_PER_TURN


def test_a_listing_of_one_model_reads_none_of_the_others(crowded: Crowded) -> None:
    with crowded.mutex.counting(lambda: crowded.num_reads) as turns:
        keys = crowded.list_all(RARE.model_name)
    assert {(key.model_name, key.cache_salt) for key in keys} == {("org/rare", "tenant")}
    assert len(keys) == len(set(keys)) == sum(turns) == NUM_RARE


def test_a_listing_of_a_model_that_nobody_has_is_over_at_once(crowded: Crowded) -> None:
    with crowded.mutex.counting(lambda: crowded.num_reads) as turns:
        assert crowded.list_all("org/none") == []
    assert turns == [0]


def test_pages_of_one_model_go_on_where_the_last_ended(crowded: Crowded) -> None:
    assert crowded.list_all(RARE.model_name, page_size=3) == crowded.list_all(RARE.model_name)


def calls_during(action: Callable[[], object]) -> int:
    """How many functions are called, which is the same on a slow machine as on a fast one."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_a_status_costs_the_same_however_much_is_held(crowded: Crowded) -> None:
    crowded.engine.report_status()  # what is made at the first call alone is made
    many = calls_during(crowded.engine.report_status)
    with open_crowded(new_pool_folder(), num_objects=100) as small:
        small.engine.report_status()
        few = calls_during(small.engine.report_status)
    assert many <= 2 * few
