"""How many prompts are fetched at once: so many as was said, whatever waits, and the next when one has ended."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from lmcache.engine.pool import SERVER_UID, Pool, PoolConfig
from lmcache.l1.namespace import NamespaceKey
from lmcache.l2.base import Loaded
from lmcache.memory.pool_files import Geometry
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_controller import PrefetchConfig, PrefetchController
from lmcache.storage.prefetch_job import PrefetchRequest
from lmcache.storage.prefetch_policies import make_prefetch_policy
from lmcache.telemetry.metrics import Counter, MetricRegistry
from tests.conftest import FakeClock
from tests.storage.hand_tier import HandTier

UNIT_BYTES = 4096
NAMESPACE = NamespaceKey("m", b"r" * 32, "")
RANK = (0x01000100, 0)
NUM_JOBS = 10
PATIENCE_S = 5.0
DEADLINE_S = 60.0


@dataclass
class Site:
    """A controller whose loop is the test."""

    pool: Pool
    controller: PrefetchController
    tier: HandTier
    clock: FakeClock
    ended: list[int] = field(default_factory=list)

    def submit(self, number: int, num_chunks: int = 1) -> None:
        """One prompt that shares no chunk with the others."""
        digests = [bytes([number, chunk]) * 16 for chunk in range(num_chunks)]
        request = PrefetchRequest(
            self.pool, NAMESPACE, [RANK], [UNIT_BYTES], digests, 0, self.clock() + DEADLINE_S, retains=False
        )
        self.controller.submit(number, request, lambda is_whole: self.ended.append(number))
        self.controller.cycle()

    def answer(self, is_held: bool) -> None:
        """The oldest lookup that waits."""
        keys, on_done = self.tier.lookups.pop(0)
        on_done([is_held] * len(keys))
        self.controller.cycle()

    def load(self) -> None:
        """The oldest load that waits."""
        self.tier.loads.pop(0)[1](Loaded(UNIT_BYTES))
        self.controller.cycle()

    @property
    def counts(self) -> tuple[int, int]:
        """Prompts in flight, and those that wait for their turn, as /status tells them."""
        report = self.controller.report()
        return report["in_flight_request_count"], report["pending_queue_size"]  # type: ignore[return-value]


OpenSite = Callable[[int], Site]


@pytest.fixture
def open_site(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[OpenSite]:
    pool = Pool(PoolConfig(pool_folder, Geometry(64 * UNIT_BYTES, 128)), clock)
    pool.wait_until_populated(30)

    def open_(max_in_flight: int) -> Site:
        metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
        controller = PrefetchController(
            make_prefetch_policy("default"), PrefetchConfig(max_in_flight), SERVER_UID, metrics, clock, lambda: None
        )
        tier = HandTier()
        controller.add_tier(tier)  # type: ignore[arg-type]
        return Site(pool, controller, tier, clock)

    yield open_
    pool.close(keep=False)


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_no_more_lookups_are_under_way_than_allowed(open_site: OpenSite, max_in_flight: int) -> None:
    site = open_site(max_in_flight)
    for number in range(NUM_JOBS):
        site.submit(number)
    for num_ended in range(NUM_JOBS):
        num_left = NUM_JOBS - num_ended
        assert len(site.tier.lookups) == min(max_in_flight, num_left)
        assert site.counts == (min(max_in_flight, num_left), max(0, num_left - max_in_flight))
        site.answer(is_held=False)
    assert site.ended == list(range(NUM_JOBS))
    assert site.counts == (0, 0)


def test_a_prompt_counts_until_it_is_loaded(open_site: OpenSite) -> None:
    site = open_site(2)
    for number in range(4):
        site.submit(number, num_chunks=3)
    site.answer(is_held=True)
    assert len(site.tier.loads) == 3
    for _ in range(3):
        assert len(site.tier.lookups) == 1, "the second prompt's: the first is being loaded"
        assert site.counts == (2, 2)
        site.load()
    assert site.ended == [0]
    assert len(site.tier.lookups) == 2
    assert site.counts == (2, 1)


def test_a_prompt_that_is_called_off_makes_room(open_site: OpenSite) -> None:
    site = open_site(1)
    for number in range(3):
        site.submit(number)
    site.controller.release(0)
    site.controller.cycle()
    assert site.counts == (1, 1)
    assert len(site.tier.lookups) == 2, "that of the first is still under way"


def test_a_tier_that_is_silent_does_not_hold_up_the_others_for_ever(open_site: OpenSite) -> None:
    site = open_site(1)
    for number in range(3):
        site.submit(number)
    site.clock.advance(PATIENCE_S)
    site.controller.cycle()
    assert len(site.tier.lookups) == 1
    site.clock.advance(0.1)
    site.controller.cycle()
    assert len(site.tier.lookups) == 2, "the first counts no more"
    site.clock.advance(DEADLINE_S)
    site.controller.cycle()
    assert site.ended == [0, 1, 2]
