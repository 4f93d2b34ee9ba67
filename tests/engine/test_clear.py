"""Clearing the engine's L1 beside the requests it serves: nobody waits for the whole of it."""

from __future__ import annotations

import pathlib
import shutil
import threading

import pytest

from lmcache.engine import cache_server
from lmcache.l1 import clearing
from tests.engine.conftest import DIGESTS, Harness

NUM_OBJECTS = 12


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "_OBJECTS_PER_SLICE", 1)
    monkeypatch.setattr(cache_server, "_CLEAR_PAUSE_S", 0.01)


def test_requests_are_served_between_slices(joined: Harness) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    clearing_thread = threading.Thread(target=joined.engine.clear)
    seen = set()
    clearing_thread.start()
    while clearing_thread.is_alive():
        with joined.engine.mutex:
            seen.add(joined.l1_report["total_object_count"])
    clearing_thread.join()
    assert seen - {0, NUM_OBJECTS}, "the mutex was held from the first object to the last"
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


def test_a_pool_that_vanishes_meanwhile_ends_a_clear(joined: Harness) -> None:
    joined.store(DIGESTS[:NUM_OBJECTS])
    folder = joined.engine.pool.files.folder
    thread = threading.Thread(target=joined.engine.clear)
    thread.start()
    shutil.rmtree(folder)
    joined.engine.reap_cycle()
    thread.join()
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
