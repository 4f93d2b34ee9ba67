"""The circuit breaker: when it opens, what it lets through, how it closes."""

from __future__ import annotations

from lmcache.storage.breaker import BreakerConfig, BreakerState, CircuitBreaker
from tests.conftest import FakeClock

CONFIG = BreakerConfig(failures_max=3, pause_s=5, pause_s_max=15)


def open_breaker(clock: FakeClock) -> CircuitBreaker:
    breaker = CircuitBreaker(CONFIG, clock)
    for _ in range(3):
        assert breaker.allows()
        breaker.failed("no route")
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not(clock: FakeClock) -> None:
    breaker = CircuitBreaker(CONFIG, clock)
    for outcome in (breaker.failed, breaker.failed, lambda _: breaker.succeeded(), breaker.failed, breaker.failed):
        assert breaker.allows()
        outcome("x")
    assert breaker.state is BreakerState.CLOSED
    breaker.failed("x")
    assert (breaker.state, breaker.num_opened, breaker.last_error) == (BreakerState.OPEN, 1, "x")


def test_nothing_passes_while_it_is_open_and_one_call_tries_after_the_pause(clock: FakeClock) -> None:
    breaker = open_breaker(clock)
    clock.advance(4.9)
    assert not breaker.allows()
    clock.advance(0.2)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.allows()
    assert not breaker.allows(), "one at a time"
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allows()


def test_each_failed_try_doubles_the_pause_up_to_its_bound(clock: FakeClock) -> None:
    breaker = open_breaker(clock)
    pauses = []
    for pause_s in (5.0, 10.0, 15.0, 15.0):
        clock.advance(pause_s - 0.01)
        pauses.append(breaker.allows())
        clock.advance(0.02)
        assert breaker.allows()
        breaker.failed("still")
    assert pauses == [False] * 4


def test_late_failures_of_calls_begun_before_do_not_lengthen_the_pause(clock: FakeClock) -> None:
    breaker = open_breaker(clock)
    clock.advance(4)
    breaker.failed("late")
    clock.advance(1.1)
    assert breaker.allows()
