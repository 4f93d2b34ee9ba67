"""The loop that keeps tiers within bounds: every adapter gets its housekeeping, whatever another one does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmcache.errors import BackendError
from lmcache.l2.base import AdapterContext
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.storage.breaker import BreakerConfig, BreakerState
from lmcache.storage.eviction_controller import L2EvictionController
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierConfig
from lmcache.telemetry.metrics import Counter, MetricRegistry


class TickingAdapter(MockL2Adapter):
    """Counts its rounds of housekeeping; `error` fails them."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig(1), AdapterContext("memory"))
        self.num_ticks = 0
        self.error: BackendError | None = None

    def tick(self) -> None:
        self.num_ticks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def tiers() -> Iterator[list[Tier]]:
    config = TierConfig(breaker=BreakerConfig())
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    made = [Tier(number, TickingAdapter(), metrics, config) for number in range(2)]
    for tier in made:
        tier.start()
        assert tier.wait_until_open(10)
    yield made
    for tier in made:
        tier.close(1.0)


def adapter_of(tier: Tier) -> TickingAdapter:
    assert isinstance(tier.adapter, TickingAdapter)
    return tier.adapter


def test_housekeeping_goes_on_where_it_fails_and_where_the_breaker_is_open(
    tiers: list[Tier], caplog: pytest.LogCaptureFixture
) -> None:
    controller = L2EvictionController({}, lambda usage: {})
    adapter_of(tiers[0]).error = BackendError("the disk is gone")
    while tiers[0].breaker.state is not BreakerState.OPEN:
        tiers[0].breaker.failed("the disk is gone")
    for _ in range(2):
        controller.cycle(tiers)
    assert [adapter_of(tier).num_ticks for tier in tiers] == [2, 2]
    assert "the disk is gone" in caplog.text
    assert tiers[1].breaker.state is BreakerState.CLOSED


def test_a_tier_that_is_closed_gets_none(tiers: list[Tier]) -> None:
    tiers[0].close(1.0)
    L2EvictionController({}, lambda usage: {}).cycle(tiers)
    assert [adapter_of(tier).num_ticks for tier in tiers] == [0, 1]
