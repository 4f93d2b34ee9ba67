"""The loop that keeps tiers within bounds: every adapter gets its housekeeping, whatever another one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError
from lmcache.l2.base import AdapterContext, EvictionConfig, Source, Usage
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.storage.breaker import BreakerConfig, BreakerState
from lmcache.storage.eviction_controller import L2EvictionController
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierConfig
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until


class TickingAdapter(MockL2Adapter):
    """Counts its rounds of housekeeping; `error` fails them."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig(1), AdapterContext("memory"))
        self.num_ticks = 0
        self.error: BackendError | None = None

        self.go_on = threading.Event()
        self.go_on.set()

    def tick(self) -> None:
        self.num_ticks += 1
        self.go_on.wait(2 * PATIENCE_S)
        if self.error is not None:
            raise self.error


@pytest.fixture
def tiers() -> Iterator[list[Tier]]:
    config = TierConfig(breaker=BreakerConfig())
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    made = [Tier(number, TickingAdapter(), metrics, config) for number in range(2)]
    for tier in made:
        tier.start()
        assert tier.wait_until_open(PATIENCE_S)
    yield made
    for tier in made:
        adapter_of(tier).go_on.set()
        tier.close(1.0)


def adapter_of(tier: Tier) -> TickingAdapter:
    assert isinstance(tier.adapter, TickingAdapter)
    return tier.adapter


def ticks(tiers: list[Tier]) -> list[int]:
    return [adapter_of(tier).num_ticks for tier in tiers]


def test_housekeeping_goes_on_where_it_fails_and_where_the_breaker_is_open(
    tiers: list[Tier], caplog: pytest.LogCaptureFixture
) -> None:
    controller = L2EvictionController({}, lambda usage: {})
    adapter_of(tiers[0]).error = BackendError("the disk is gone")
    while tiers[0].breaker.state is not BreakerState.OPEN:
        tiers[0].breaker.failed("the disk is gone")
    for count in (1, 2):
        controller.cycle(tiers)
        wait_until(lambda count=count: ticks(tiers) == [count, count])
    assert "the disk is gone" in caplog.text
    assert tiers[1].breaker.state is BreakerState.CLOSED


def test_a_tier_that_is_closed_gets_none(tiers: list[Tier]) -> None:
    tiers[0].close(1.0)
    L2EvictionController({}, lambda usage: {}).cycle(tiers)
    wait_until(lambda: ticks(tiers) == [0, 1])


def test_a_backend_that_hangs_holds_up_no_other_and_is_not_asked_twice(tiers: list[Tier]) -> None:
    hung, other = (adapter_of(tier) for tier in tiers)
    hung.go_on.clear()
    for number in range(10):
        key = ObjectKey(bytes([number]) * 32, "m", 1)
        other.store(key, Source(memoryview(b"x" * 1000)))
    other.index.capacity_bytes = other.usage().total_bytes_used
    controller = L2EvictionController({1: EvictionConfig(trigger_watermark=0.5, eviction_ratio=1.0)}, lambda usage: {})
    cycle = threading.Thread(target=lambda: [controller.cycle(tiers) for _ in range(3)], daemon=True)
    cycle.start()
    wait_until(lambda: other.num_objects == 5)
    cycle.join(PATIENCE_S)
    assert not cycle.is_alive()
    wait_until(lambda: hung.num_ticks > 0)  # in a thread of its own
    assert hung.num_ticks == 1


def test_a_capacity_is_missed_once_and_only_where_there_is_none(
    tiers: list[Tier], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some adapters know their capacity only when they are open."""
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    adapter = TickingAdapter()
    monkeypatch.setattr(adapter, "usage", lambda: Usage(0, {}, 0))
    late = Tier(2, adapter, metrics, TierConfig(breaker=BreakerConfig()))
    controller = L2EvictionController(dict.fromkeys(range(3), EvictionConfig()), lambda usage: {})
    controller.cycle([*tiers, late])
    assert "no capacity" not in caplog.text
    late.start()
    assert late.wait_until_open(PATIENCE_S)
    for _ in range(2):
        controller.cycle([*tiers, late])
    assert caplog.text.count("no capacity") == 1
    late.close(1.0)
