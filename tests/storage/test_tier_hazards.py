"""What may go wrong in a tier: adapters with bugs, backends that hang, closes that cross with work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import AdapterNotFoundError, BackendError, BreakerOpenError
from lmcache.l2.base import Loaded, Source, StoreStatus
from lmcache.l2.registry import parse_adapters
from lmcache.storage.tier_life import TierState
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.storage.test_manager import MEMORY, OBJECT_BYTES, OpenSite, key, open_site
from tests.storage.test_tier import KEYS, SOON, Answers, MakeTier, make_tier, source

__all__ = ["make_tier", "open_site"]


def test_an_adapter_that_cannot_release_costs_no_answer(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    adapter.objects[KEYS[0]] = b"kv"

    def release(keys: Sequence[ObjectKey]) -> None:
        raise ZeroDivisionError

    adapter.release = release  # type: ignore[method-assign]
    answers = Answers()
    tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
    assert answers.wait() == [Loaded(2)]
    tier.release(KEYS[:1])


def test_an_adapter_that_miscounts_finds_nothing(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    adapter.lookup = lambda keys: [True]  # type: ignore[method-assign, assignment]
    answers = Answers()
    tier.submit_lookup(KEYS[:3], answers, SOON)
    assert answers.wait() == [[False] * 3]


@pytest.mark.parametrize("wrong", [Loaded(1), None, 2])
def test_an_object_that_was_not_loaded_whole_is_not_delivered(make_tier: MakeTier, wrong: object) -> None:
    tier, adapter = make_tier()
    adapter.load = lambda key, target: wrong  # type: ignore[method-assign, assignment, return-value]
    answers = Answers()
    tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
    assert answers.wait() == [None]
    assert adapter.released == [KEYS[0]]


def test_bytes_being_loaded_are_none_once_nothing_is(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(num_threads=8)
    adapter.objects[KEYS[0]] = b"kv"
    answers = Answers()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3000):
            tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
        answers.wait(3000)
    finally:
        sys.setswitchinterval(interval_s)
    wait_until(lambda: tier.inflight() == (0, 0, 0))


def test_a_tier_that_is_drained_while_it_opens_takes_no_work_afterwards(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(start=False)
    opening, go_on = threading.Event(), threading.Event()

    def behave(call: str) -> None:
        opening.set()
        go_on.wait(2 * PATIENCE_S)

    adapter.behave = behave
    tier.start()
    assert opening.wait(PATIENCE_S)
    tier.drain()
    go_on.set()
    tier.wait_until_open(PATIENCE_S)
    assert tier.state is TierState.DRAINING
    answers = Answers()
    tier.submit_lookup(KEYS[:1], answers, SOON)
    assert answers.wait() == [[False]]
    tier.close(1.0)
    assert adapter.is_closed


def test_an_adapter_that_opens_after_it_was_given_up_is_closed(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(start=False)
    opening, go_on = threading.Event(), threading.Event()

    def behave(call: str) -> None:
        opening.set()
        go_on.wait(60)

    adapter.behave = behave
    tier.start()
    assert opening.wait(PATIENCE_S)
    tier.close(0.1)
    assert not adapter.is_closed, "it is not open yet, and does not answer"
    go_on.set()
    wait_until(lambda: adapter.is_closed)
    assert tier.state is TierState.CLOSED


@pytest.mark.parametrize("start", [True, False])
def test_an_adapter_that_cannot_be_closed_is_left_all_the_same(
    make_tier: MakeTier, start: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tier, adapter = make_tier(start=start)

    def fail() -> None:
        raise BackendError("not a directory")

    adapter.close = fail  # type: ignore[method-assign]
    tier.close(1.0)
    assert tier.state is TierState.CLOSED
    assert "could not be closed in order: not a directory" in caplog.text


def test_a_close_waits_once_for_all_threads_that_hang(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(num_threads=2 * int(PATIENCE_S))
    go_on, answers = threading.Event(), Answers()
    adapter.behave = lambda call: go_on.wait(4 * PATIENCE_S)  # type: ignore[assignment]
    for _ in range(tier.adapter.num_threads):
        tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
    wait_until(lambda: tier._workers.num_busy == tier.adapter.num_threads)
    closing = threading.Thread(target=tier.close, args=(0.05,))  # and never less than a second
    closing.start()
    closing.join(PATIENCE_S)
    was_closed = not closing.is_alive()
    go_on.set()
    closing.join()
    assert was_closed, "it would have taken a second for every thread"
    assert not adapter.is_closed, "somebody was still in it"


def test_an_adapter_is_not_closed_under_an_operators_call(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    entered, go_on = threading.Event(), threading.Event()
    closed_meanwhile: list[bool] = []

    def work(_: object) -> None:
        entered.set()
        go_on.wait(2 * PATIENCE_S)
        closed_meanwhile.append(adapter.is_closed)

    calling = threading.Thread(target=lambda: tier.call(work))
    calling.start()
    assert entered.wait(PATIENCE_S)
    closing = threading.Thread(target=tier.close, args=(PATIENCE_S,))
    closing.start()
    wait_until(lambda: tier.state is TierState.DRAINING)
    time.sleep(0.05)
    go_on.set()
    closing.join(PATIENCE_S)
    calling.join(PATIENCE_S)
    assert closed_meanwhile == [False]
    assert adapter.is_closed
    with pytest.raises(BreakerOpenError):
        tier.call(lambda own: own.usage())


def test_an_operators_call_that_slips_in_before_the_end_is_waited_for(make_tier: MakeTier) -> None:
    """It came after the tier was found idle. Left open, the adapter would keep its files and locks for good."""
    tier, adapter = make_tier()
    entered, go_on = threading.Event(), threading.Event()

    def work(_: object) -> None:
        entered.set()
        go_on.wait(2 * PATIENCE_S)

    calling = threading.Thread(target=lambda: tier.call(work))
    stop = tier._workers.stop

    def slip_in() -> None:
        calling.start()
        assert entered.wait(PATIENCE_S)
        stop()
        threading.Timer(0.1, go_on.set).start()

    tier._workers.stop = slip_in  # type: ignore[method-assign]
    tier.close(PATIENCE_S)
    calling.join(PATIENCE_S)
    assert adapter.is_closed


def test_a_removed_adapter_that_still_writes_to_the_pool_is_not_forgotten(open_site: OpenSite) -> None:
    """Else the lock on the pool would be let go, and its slots be given to others."""
    site = open_site(MEMORY, MEMORY)
    tier, go_on, answers = site.manager.tiers()[0], threading.Event(), Answers()
    site.adapter()._read = lambda key, target: Loaded(len(target) * go_on.wait(2 * PATIENCE_S))  # type: ignore[method-assign]
    tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
    wait_until(lambda: tier.inflight()[1] == 1)
    site.manager.remove_adapter(0, drain_timeout_s=0.1)
    assert [left.index for left in site.manager.tiers()] == [1]
    assert not site.manager.close(), "a thread may still write to the pool"
    go_on.set()
    answers.wait()
    wait_until(lambda: not tier.has_stuck_threads)
    assert site.manager.close()


def test_an_adapter_is_removed_once(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    outcomes: list[str] = []

    def remove() -> None:
        try:
            site.manager.remove_adapter(0)
            outcomes.append("removed")
        except AdapterNotFoundError:
            outcomes.append("refused")

    removers = [threading.Thread(target=remove) for _ in range(4)]
    for thread in removers:
        thread.start()
    for thread in removers:
        thread.join(PATIENCE_S)
    assert sorted(outcomes) == ["refused"] * 3 + ["removed"]
    assert site.manager.tiers() == []


def test_a_store_that_a_removal_overtakes_is_dropped_and_counted(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    tier = site.manager.tiers()[0]

    def refuse(*_: object) -> bool:
        site.manager.stores.remove_tier(0)
        return False

    tier.submit_store = refuse  # type: ignore[method-assign, assignment]
    site.store(1)
    wait_until(lambda: site.manager.metrics.store_dropped.value("memory", "removed") == 1)


def test_what_could_not_be_removed_is_not_counted_as_evicted(open_site: OpenSite) -> None:
    site = open_site(
        '{"type": "memory", "max_size_gb": 1, '
        '"eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.5, "eviction_ratio": 1}}'
    )
    adapter = site.adapter()
    site.store(1, 2, 3, 4)
    wait_until(lambda: site.held() == {1, 2, 3, 4})
    failed: list[int] = []

    def remove(keys: Sequence[ObjectKey]) -> None:
        failed.append(len(keys))
        raise BackendError("read-only")

    adapter._remove = remove  # type: ignore[method-assign]
    adapter.index.capacity_bytes = adapter.usage().total_bytes_used
    wait_until(lambda: bool(failed))
    wait_until(lambda: len(site.held()) == 4)
    assert site.manager.metrics.evicted_objects.value("") == 0
    adapter.index.check_integrity()


def test_a_large_eviction_lets_others_look_in_between(open_site: OpenSite) -> None:
    adapter = open_site(MEMORY).adapter()
    for number in range(600):
        assert adapter.store(key(number), Source(memoryview(b"x" * OBJECT_BYTES))) is StoreStatus.STORED
    mutex, entered = adapter.index._mutex, 0

    class Counting:
        def __enter__(self) -> None:
            nonlocal entered
            entered += 1
            mutex.acquire()

        def __exit__(self, *_: object) -> None:
            mutex.release()

    adapter.index._mutex = Counting()  # type: ignore[assignment]
    assert len(adapter.index.begin_eviction(1 << 40, 600)) == 600
    assert entered >= 3
    adapter.index.check_integrity()


def test_adapters_configured_alike_have_separate_lives(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    index = site.manager.add_adapter(parse_adapters([MEMORY])[0])
    wait_until(lambda: site.manager.tiers()[-1].state is TierState.ACTIVE)
    answers = Answers()
    assert site.manager.tiers()[-1].submit_store(KEYS[0], source(), answers)
    assert answers.wait() == [StoreStatus.STORED]
    assert site.adapter(0).num_objects == 0
    site.manager.remove_adapter(index)
