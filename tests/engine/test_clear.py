"""Clearing the engine's L1 beside the requests it serves: nobody waits for the whole of it."""

from __future__ import annotations

import pathlib
import shutil
import threading
from types import SimpleNamespace

import pytest

from lmcache.engine import cache_server
from lmcache.l1 import clearing
from lmcache.testing.waiting import PATIENCE_S
from tests.engine.conftest import DIGESTS, Harness

NUM_OBJECTS = 12


class Pauses:
    """The pauses between slices of a clear: each is told, and lasts until the test lets it end."""

    def __init__(self) -> None:
        self._begun = threading.Semaphore(0)
        self._may_end = threading.Semaphore(0)

    def sleep(self, _: float) -> None:
        self._begun.release()
        assert self._may_end.acquire(timeout=2 * PATIENCE_S)

    def wait_for_one(self) -> None:
        assert self._begun.acquire(timeout=PATIENCE_S)

    def end_one(self) -> None:
        self._may_end.release()

    def end_all(self) -> None:
        self._may_end.release(1000)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "_OBJECTS_PER_SLICE", 1)
    monkeypatch.setattr(cache_server, "_CLEAR_PAUSE_S", 0.01)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(cache_server, "time", SimpleNamespace(sleep=pauses.sleep))
    return pauses


def test_requests_are_served_between_slices(joined: Harness, pauses: Pauses) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    clearing_thread = threading.Thread(target=joined.engine.clear)
    clearing_thread.start()
    for num_removed in range(1, NUM_OBJECTS + 1):
        pauses.wait_for_one()
        assert joined.engine.mutex.acquire(timeout=PATIENCE_S), "held from the first object to the last"
        assert joined.l1_report["total_object_count"] == NUM_OBJECTS - num_removed
        joined.engine.mutex.release()
        pauses.end_one()
    pauses.end_all()
    clearing_thread.join()
    assert joined.l1_report["total_object_count"] == 0


def test_clears_follow_each_other(joined: Harness) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(joined.engine.clear())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 0, NUM_OBJECTS]
    assert joined.engine.metrics.l1_evicted.value("") == NUM_OBJECTS


def test_a_pool_that_vanishes_meanwhile_ends_a_clear(joined: Harness, pauses: Pauses) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    folder = joined.engine.pool.files.folder
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(joined.engine.clear()))
    thread.start()
    pauses.wait_for_one()
    shutil.rmtree(folder)
    joined.engine.reap_cycle()
    pauses.end_all()
    thread.join()
    assert counts == [1], "what was removed before"
    joined.engine.pool.wait_until_populated(30)
    assert joined.l1_report["total_object_count"] == 0
    assert pathlib.Path(folder).exists()


def test_an_unhealthy_l1_is_said_and_cleared_all_the_same(joined: Harness, caplog: pytest.LogCaptureFixture) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    allocator = joined.engine.pool.l1._state.slots.allocator
    allocator._start_of_end[1] = 0
    assert joined.engine.clear() == NUM_OBJECTS
    del allocator._start_of_end[1]
    assert "L1 is not healthy before a clear: the free lists disagree" in caplog.text
