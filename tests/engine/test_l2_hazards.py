"""What may go wrong between requests and tiers: crossings, lost pools, adapters that hang."""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from lmcache.errors import PoolError
from lmcache.protocol import messages as m
from lmcache.storage.prefetch_controller import PrefetchConfig
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.engine.conftest import CHUNK_SIZE
from tests.engine.tiered import MEMORY, OpenTiered, Tiered, tiered_engines

DIGESTS = [bytes([number]) * 32 for number in range(1, 9)]


@pytest.fixture
def open_tiered(pool_folder: pathlib.Path) -> Iterator[OpenTiered]:
    with tiered_engines(pool_folder) as open_:
        yield open_


def stored_in_l2(open_tiered: OpenTiered, count: int = 2) -> Tiered:
    """What is loaded stays in L1, so that a late answer finds it however late it is made."""
    tiered = open_tiered(prefetch_policy="retain")
    tiered.write(DIGESTS[:count])
    tiered.wait_until_stored(count)
    tiered.engine.clear()
    return tiered


def late_reply(tiered: Tiered, request: str = "r") -> Callable[[], m.Reply]:
    """A lookup whose answer is ready, and not made yet."""
    ready: list[Callable[[], m.Reply]] = []
    with tiered.engine.mutex:
        asked = m.Lookup(request, "", b"".join(DIGESTS[:2]), 60.0)
        assert tiered.engine.lookups.lookup(tiered.engine.pool, tiered.client(100), asked, ready.append) is None
    wait_until(lambda: bool(ready))
    return ready[0]


def assert_nothing_is_held(tiered: Tiered) -> None:
    wait_until(lambda: tiered.l1_report["read_locked_count"] == 0)
    assert tiered.l1_report["temporary_count"] == 0


def test_an_answer_that_the_end_of_its_request_overtook_holds_nothing(open_tiered: OpenTiered) -> None:
    tiered = stored_in_l2(open_tiered)
    make_reply = late_reply(tiered)
    tiered.end()
    assert make_reply() == m.Found(0, b"")
    assert len(tiered.engine.sessions) == 0, "nobody would ever end it"
    assert_nothing_is_held(tiered)


def test_an_answer_that_a_second_lookup_overtook_does_not_call_that_off(open_tiered: OpenTiered) -> None:
    tiered = stored_in_l2(open_tiered)
    first = late_reply(tiered)
    tiered.engine.clear()
    second = late_reply(tiered)
    assert first() == m.Found(0, b"")
    answer = second()
    assert isinstance(answer, m.Found)
    tiered.assert_bytes(answer, DIGESTS[:2])
    tiered.end()
    assert_nothing_is_held(tiered)


def test_an_answer_that_a_reset_overtook_promises_nothing_of_before(open_tiered: OpenTiered) -> None:
    tiered = stored_in_l2(open_tiered)
    make_reply = late_reply(tiered)
    tiered.engine.management.reset_engine(tiered.engine.pool, tiered.client(100), b"epoch", CHUNK_SIZE)
    assert make_reply() == m.Found(0, b"")
    tiered.end()
    assert_nothing_is_held(tiered)


def test_an_answer_for_a_client_that_is_gone_locks_nothing(open_tiered: OpenTiered) -> None:
    tiered = stored_in_l2(open_tiered)
    make_reply = late_reply(tiered)
    tiered.engine.management.unregister(tiered.engine.pool, 100)
    tiered.scheduler()
    assert isinstance(make_reply(), m.Failure)
    assert len(tiered.engine.sessions) == 0
    assert_nothing_is_held(tiered)


def test_too_many_prefetches_cost_nothing_of_what_l1_holds(
    open_tiered: OpenTiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiered = stored_in_l2(open_tiered)
    tiered.write(DIGESTS[:1])
    monkeypatch.setattr("lmcache.storage.prefetch_controller._QUEUED_MAX", 0)
    found = tiered.ask(DIGESTS[:2])
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:1])


def test_a_status_waits_for_an_adapter_without_holding_up_requests(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    asked, go_on = threading.Event(), threading.Event()
    adapter = tiered.engine.storage.tiers()[0].adapter

    def report() -> dict[str, object]:
        asked.set()
        go_on.wait(2 * PATIENCE_S)
        return {}

    adapter.report_status = report  # type: ignore[method-assign]
    status = threading.Thread(target=tiered.engine.report_status)
    status.start()
    try:
        assert asked.wait(10)
        assert tiered.engine.mutex.acquire(timeout=PATIENCE_S), "requests wait for an adapter"
        tiered.engine.mutex.release()
    finally:
        go_on.set()
        status.join()


def lose_pool(tiered: Tiered) -> None:
    shutil.rmtree(tiered.engine.pool.files.folder)
    tiered.engine.reap_cycle()
    tiered.engine.pool.wait_until_populated(30)
    tiered.join()


def test_the_bytes_of_a_lost_pool_are_not_those_of_the_next(open_tiered: OpenTiered) -> None:
    """A tier may look at the first pool when the second is in use, be it for the first time."""
    tiered = open_tiered()
    old = tiered.engine.pool
    lose_pool(tiered)
    assert tiered.engine.pool is not old
    tiered.write(DIGESTS[:1])
    for start in range(0, old.pool_bytes, 4096):
        old.view(start, 4096)[:] = b"old!" * 1024
    answer = tiered.ask(DIGESTS[:1])
    assert isinstance(answer, m.Found)
    tiered.assert_bytes(answer, DIGESTS[:1])


def test_what_a_lost_pool_held_is_not_stored(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tier = tiered.engine.storage.tiers()[0]
    writes = tiered.hold("_write")
    for digest in DIGESTS[:6]:
        tiered.write([digest])
    stores = tiered.engine.storage.stores
    # An eighth of the pool may be on its way: two objects of sixteen.
    wait_until(lambda: len(writes.begun) == 2 and (stores.num_inflight, stores.num_pending) == (2, 4))
    lose_pool(tiered)
    writes.let_go()
    wait_until(lambda: not stores.num_pending + stores.num_inflight)
    assert tier.adapter.num_objects == 2, "what was on its way may end, what waited is gone"


def test_a_pool_that_cannot_be_made_anew_closes_no_file_of_others(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    folder = tiered.engine.pool.files.folder
    shutil.rmtree(folder)
    folder.write_bytes(b"in the way")
    with pytest.raises(PoolError):
        tiered.engine.reap_cycle()
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    try:
        with pytest.raises(PoolError):
            tiered.engine.reap_cycle()
        for descriptor in others:
            os.fstat(descriptor)
    finally:
        for descriptor in others:
            os.close(descriptor)
    folder.unlink()
    tiered.engine.reap_cycle()
    tiered.engine.pool.wait_until_populated(30)
    tiered.join()
    tiered.write(DIGESTS[:1])
    assert tiered.lookup(DIGESTS[:1]).num_chunks == 1


def test_a_pool_whose_index_was_replaced_is_not_adopted_again(open_tiered: OpenTiered) -> None:
    """This server may still be loading into its slots: no slot of it may be given out anew."""
    tiered = open_tiered()
    tiered.write(DIGESTS[:2])
    files = tiered.engine.pool.files
    copy = files.folder / "index.copy"
    shutil.copyfile(files.folder / "index", copy)
    copy.replace(files.folder / "index")
    tiered.engine.reap_cycle()
    assert tiered.engine.pool.files is not files
    assert tiered.engine.pool.files.pool_id != files.pool_id
    assert tiered.engine.pool.recovery.num_ready == 0


def test_a_lookup_that_ran_out_of_time_leaves_no_lease(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(MEMORY, MEMORY)
    tiered.write(DIGESTS[:2])
    for number in (0, 1):
        tiered.wait_until_stored(2, number)
    tiered.engine.clear()
    quick, slow = (tier.adapter for tier in tiered.engine.storage.tiers())
    lookups = tiered.hold("lookup", adapter=1)
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup("r", "", b"".join(DIGESTS[:2]), 60.0), replies) is None
    wait_until(lambda: bool(lookups.begun) and quick.index.num_leased == 2)  # type: ignore[attr-defined]
    tiered.clock.advance(60.0)
    wait_until(lambda: bool(replies))
    assert replies == [m.Found(0, b"")]
    wait_until(lambda: quick.index.num_leased == 0)  # type: ignore[attr-defined]
    lookups.let_go()
    wait_until(lambda: tiered.engine.storage.tiers()[1].inflight() == (0, 0, 0))
    assert slow.index.num_leased == 0  # type: ignore[attr-defined]


def test_a_lookup_is_answered_when_its_time_is_over_and_not_a_cycle_later(
    open_tiered: OpenTiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client takes a server for gone that is late by more than its patience."""
    monkeypatch.setattr("lmcache.storage.loops._INTERVAL_S", 3600.0)
    tiered = stored_in_l2(open_tiered)
    tiered.hold("lookup")
    assert tiered.ask(DIGESTS[:2], wait_s=0.3) == m.Found(0, b"")


def test_prefetches_that_a_silent_adapter_keeps_do_not_keep_others(
    open_tiered: OpenTiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache.storage.prefetch_controller._PATIENCE_S", 0.1)
    tiered = open_tiered(MEMORY, MEMORY, prefetch_policy="first", prefetch=PrefetchConfig(max_in_flight=1))
    tiered.write(DIGESTS[:2])
    for number in (0, 1):
        tiered.wait_until_stored(2, number)
    tiered.engine.clear()
    quick = tiered.engine.storage.tiers()[0].adapter
    tiered.hold("lookup", adapter=1)
    only_silent = [key for key, _ in quick.list_l2_keys(None, 10, None).entries if key.chunk_hash == DIGESTS[0]]
    assert quick.delete(only_silent).deleted
    tiered.lookup(DIGESTS[:1], "ahead", lock=False)
    answer = tiered.ask(DIGESTS[1:2], "now", wait_s=600.0)
    assert isinstance(answer, m.Found)
    tiered.assert_bytes(answer, DIGESTS[1:2])


def test_a_lookup_does_not_wait_for_an_adapter_that_was_removed(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(MEMORY, MEMORY)
    tiered.write(DIGESTS[:2])
    for number in (0, 1):
        tiered.wait_until_stored(2, number)
    tiered.engine.clear()
    silent, lookups = tiered.engine.storage.tiers()[0], tiered.hold("lookup")
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup("r", "", b"".join(DIGESTS[:2]), 600.0), replies) is None
    wait_until(lambda: bool(lookups.begun))
    tiered.engine.storage.remove_adapter(silent.index, drain_timeout_s=0.05)
    wait_until(lambda: bool(replies))
    (answer,) = replies
    assert isinstance(answer, m.Found)
    tiered.assert_bytes(answer, DIGESTS[:2])


def test_prefetches_ahead_of_requests_leave_room_in_the_pool(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(units=8)
    for number, digest in enumerate(DIGESTS, start=1):
        tiered.write([digest])
        tiered.wait_until_stored(number)
    tiered.engine.clear()
    for number, digest in enumerate(DIGESTS):
        tiered.lookup([digest], f"r{number}", lock=False)
    prefetches = tiered.engine.storage.prefetches
    wait_until(lambda: prefetches.report()["completed_results_count"] == len(DIGESTS))
    assert tiered.l1_report["read_locked_count"] == 4, "half of the pool, whoever asked for it"
    assert tiered.store([bytes([100 + number]) * 32 for number in range(4)]) == 4
    for number in range(len(DIGESTS)):
        tiered.end(f"r{number}")
    assert_nothing_is_held(tiered)
    tiered.lookup(DIGESTS[:1], "again", lock=False)
    wait_until(lambda: tiered.l1_report["read_locked_count"] == 1)
