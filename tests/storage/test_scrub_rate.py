"""How many stored objects the scrub verifies: as many as its rate allows, whatever there is, however late it comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import Source
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.scrubber import Scrubber, ScrubConfig
from lmcache.telemetry.metrics import Counter, MetricRegistry
from tests.conftest import FakeClock
from tests.storage.hand_tier import HandTier

NUM_OBJECTS = 100


class CountingTier(HandTier):
    """Full of objects; `verified` has those that were verified, in order."""

    def __init__(
        self, index: int = 0, before: Callable[[], None] = lambda: None, num_objects: int = NUM_OBJECTS
    ) -> None:
        super().__init__(index)
        self.verified: list[ObjectKey] = []
        verify = self.adapter.verify

        def counted(key: ObjectKey) -> bool:
            before()
            self.verified.append(key)
            return verify(key)

        for number in range(num_objects):
            self.adapter.store(ObjectKey(number.to_bytes(32, "big"), "m", 1), Source(memoryview(b"kv")))
        self.adapter.verify = counted  # type: ignore[method-assign]


def make_scrubber(rate: float, clock: FakeClock) -> Scrubber:
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    return Scrubber(ScrubConfig(rate), metrics, clock)


def verified_by_cycle(
    scrubber: Scrubber, clock: FakeClock, tiers: list[CountingTier], pauses_s: list[float]
) -> list[int]:
    """How many objects each cycle verified, after so long a pause."""
    found = []
    for pause_s in pauses_s:
        before = sum(len(tier.verified) for tier in tiers)
        clock.advance(pause_s)
        scrubber.cycle(tiers)  # type: ignore[arg-type]
        found.append(sum(len(tier.verified) for tier in tiers) - before)
    return found


@pytest.mark.parametrize(
    ("rate", "pauses_s", "expected"),
    [
        (10, [0, 1, 1, 0.5, 2], [0, 10, 10, 5, 10]),
        (1, [1, 1, 0.5, 0.5], [1, 1, 0, 1]),
        (0.25, [1, 1, 1, 1, 1, 3], [0, 0, 0, 1, 0, 1]),
        (0, [1, 3600], [0, 0]),
    ],
)
def test_each_cycle_spends_what_the_rate_allows_since_the_last(
    clock: FakeClock, rate: float, pauses_s: list[float], expected: list[int]
) -> None:
    tier = CountingTier()
    scrubber = make_scrubber(rate, clock)
    assert verified_by_cycle(scrubber, clock, [tier], pauses_s) == expected
    assert scrubber.report()["verified_count"] == sum(expected)


def test_a_scrub_that_was_kept_waiting_catches_up_on_a_second_only(clock: FakeClock) -> None:
    assert verified_by_cycle(make_scrubber(10, clock), clock, [CountingTier()], [3600, 1]) == [10, 10]


def test_tiers_share_the_rate(clock: FakeClock) -> None:
    tiers = [CountingTier(index) for index in range(3)]
    assert verified_by_cycle(make_scrubber(10, clock), clock, tiers, [1, 1, 1]) == [10, 10, 10]
    assert min(len(tier.verified) for tier in tiers) >= 9
    tiers[0].is_usable = False
    before = len(tiers[0].verified)
    assert verified_by_cycle(make_scrubber(10, clock), clock, tiers, [1]) == [10]
    assert len(tiers[0].verified) == before, "it is left alone"


def test_what_a_busy_tier_does_not_take_is_not_lost_and_not_doubled(clock: FakeClock) -> None:
    tier = CountingTier()
    scrubber = make_scrubber(10, clock)
    tier.takes_chores = False
    assert verified_by_cycle(scrubber, clock, [tier], [1, 1, 1]) == [0, 0, 0]
    tier.takes_chores = True
    assert verified_by_cycle(scrubber, clock, [tier], [0, 1]) == [10, 10]


def test_slow_reads_end_a_cycle_and_all_objects_have_their_turn(clock: FakeClock) -> None:
    tier = CountingTier(before=lambda: clock.advance(0.2), num_objects=7)
    scrubber = make_scrubber(100, clock)
    assert verified_by_cycle(scrubber, clock, [tier], [1, 1, 1]) == [3, 3, 1], "half a second each, and to the end"
    assert len(set(tier.verified)) == 7
    assert verified_by_cycle(scrubber, clock, [tier], [1]) == [3]
    assert tier.verified[7:] == tier.verified[:3], "then it begins anew"
