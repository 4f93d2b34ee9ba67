"""Periodic threads: early runs are never lost, failures are survived, and a run that hangs shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.conftest import FakeClock

_NEVER_S = 3600.0

Start = Callable[..., PeriodicThread]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(body, interval_s, ...)`: a thread that ends with the test."""
    registry = PeriodicThreadRegistry()

    def run(body: Callable[[], dict[str, object]], interval_s: float = _NEVER_S, **settings: Any) -> PeriodicThread:
        thread = PeriodicThread(f"lmcache-test-{len(registry.all())}", ThreadLevel.HIGH, interval_s, body, **settings)
        registry.start(thread)
        return thread

    yield run
    registry.stop_all()


class Gate:
    """A body that tells when it begins and ends when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self) -> dict[str, object]:
        self.begun.release()
        assert self.let.acquire(timeout=PATIENCE_S)
        return {}


def test_body_runs_every_interval(start: Start) -> None:
    thread = start(lambda: {"moved": 3}, interval_s=0.001)
    wait_until(lambda: thread.total_runs >= 5)
    assert thread.is_running
    assert thread.last_summary is not None
    assert (thread.last_summary.success, thread.last_summary.extra_info) == (True, {"moved": 3})
    assert abs(thread.last_run_time - time.time()) < PATIENCE_S
    assert (thread.failed_runs, thread.success_percent) == (0, 100.0)


def test_woken_thread_does_not_wait_for_its_interval(start: Start) -> None:
    thread = start(dict, init_wait_s=_NEVER_S)
    thread.wake()
    wait_until(lambda: thread.total_runs == 1)
    thread.wake()
    wait_until(lambda: thread.total_runs == 2)


def test_wake_during_a_run_means_one_more_right_after(start: Start) -> None:
    gate = Gate()
    thread = start(gate, init_wait_s=_NEVER_S)
    thread.wake()
    assert gate.begun.acquire(timeout=PATIENCE_S)
    for _ in range(3):
        thread.wake()
    gate.let.release()
    assert gate.begun.acquire(timeout=PATIENCE_S)
    gate.let.release()
    wait_until(lambda: thread.total_runs == 2)
    assert not gate.begun.acquire(timeout=0.05)


def test_wake_before_the_start_counts() -> None:
    thread = PeriodicThread("lmcache-test-early", ThreadLevel.LOW, _NEVER_S, dict, init_wait_s=_NEVER_S)
    thread.wake()
    thread.start()
    wait_until(lambda: thread.total_runs == 1)
    thread.stop()


def test_what_was_handed_over_before_a_wake_is_always_seen(start: Start) -> None:
    handed_over: list[int] = []
    seen: list[int] = []

    def take() -> dict[str, object]:
        while handed_over:
            seen.append(handed_over.pop())
        return {}

    thread = start(take, init_wait_s=_NEVER_S)
    for number in range(2000):
        handed_over.append(number)
        thread.wake()
    wait_until(lambda: len(seen) == 2000)


def test_stop_ends_a_waiting_thread_at_once(start: Start) -> None:
    thread = start(dict, init_wait_s=_NEVER_S)
    thread.stop(PATIENCE_S)
    assert not thread.is_running
    assert thread.total_runs == 0
    assert not thread.is_active


def test_failing_run_is_counted_and_survived(start: Start) -> None:
    def fail_at_first() -> dict[str, object]:
        if thread.total_runs == 0:
            raise ValueError("not today")
        return {}

    thread = start(fail_at_first, init_wait_s=_NEVER_S)
    thread.wake()
    wait_until(lambda: thread.total_runs == 1)
    assert thread.last_summary is not None
    assert (thread.last_summary.success, thread.last_summary.message) == (False, "ValueError: not today")
    assert (thread.failed_runs, thread.success_percent) == (1, 0.0)
    thread.wake()
    wait_until(lambda: thread.total_runs == 2)
    assert (thread.failed_runs, thread.success_percent) == (1, 50.0)


class Watched(PeriodicThread):
    """Looks at itself whenever something of it changes: the runs that count, and the run that is told of."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        super().__init__(*arguments, **settings)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name != "seen" and "_runs" in vars(self):
            self.seen.append((self.total_runs, int(self.last_summary.message[-1]) if self.last_summary else 0))


def test_what_a_run_tells_is_there_when_it_counts() -> None:
    def fail() -> dict[str, object]:
        raise ValueError(f"number {thread.total_runs + 1}")

    thread = Watched("lmcache-test-watched", ThreadLevel.LOW, 0.001, fail)
    thread.start()
    wait_until(lambda: thread.total_runs >= 3)
    thread.stop(PATIENCE_S)
    assert len(thread.seen) > 9
    assert [(counted, told) for counted, told in thread.seen if counted < 9 and told < counted] == []
    assert thread.failed_runs == thread.total_runs


def test_thread_that_never_ran_is_active_for_a_while(start: Start, clock: FakeClock) -> None:
    thread = start(dict, interval_s=1000.0, init_wait_s=500.0, clock=clock)
    clock.advance(3499)
    assert thread.is_active
    assert thread.last_run_ago_s() is None
    clock.advance(2)
    assert not thread.is_active


def test_hanging_run_makes_a_thread_inactive_until_it_ends(start: Start, clock: FakeClock) -> None:
    gate = Gate()
    thread = start(gate, interval_s=100.0, init_wait_s=_NEVER_S, clock=clock)
    thread.wake()
    gate.let.release()
    wait_until(lambda: thread.total_runs == 1)
    clock.advance(200)
    assert thread.is_active
    thread.wake()
    wait_until(lambda: gate.begun.acquire(blocking=False) and gate.begun.acquire(timeout=PATIENCE_S))
    clock.advance(299)
    assert thread.is_active
    clock.advance(2)
    assert not thread.is_active
    assert thread.is_running
    assert thread.last_run_ago_s() == 501
    gate.let.release()
    wait_until(lambda: thread.total_runs == 2)
    wait_until(lambda: thread.is_active)


def test_two_threads_of_one_name_are_refused(start: Start) -> None:
    registry = PeriodicThreadRegistry()
    registry.start(PeriodicThread("lmcache-test-twin", ThreadLevel.LOW, _NEVER_S, dict, init_wait_s=_NEVER_S))
    with pytest.raises(ValueError, match="exists already"):
        registry.start(PeriodicThread("lmcache-test-twin", ThreadLevel.LOW, _NEVER_S, dict))
    assert registry.get("lmcache-test-twin") is registry.all()[0]
    assert registry.get("other") is None
    registry.stop_all()
    assert registry.all() == []
