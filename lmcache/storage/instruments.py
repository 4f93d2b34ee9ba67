"""Gauges over tiers, and the listener that counts adapters' events by tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lmcache.core.keys import ObjectKey
from lmcache.storage.breaker import BreakerState
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier
from lmcache.storage.tier_life import TierState
from lmcache.telemetry.metrics import Labels, MetricRegistry

_PREFIX = "lmcache_mp_"


class EventCounter:
    """An `L2Listener`."""

    def __init__(self, metrics: StorageMetrics) -> None:
        self._metrics = metrics

    def on_l2_keys_stored(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None:
        """Counted by the store controller, which knows what was asked for."""

    def on_l2_keys_accessed(self, keys: Sequence[ObjectKey]) -> None:
        """Counted by the prefetch controller."""

    def on_l2_keys_deleted(self, keys: Sequence[ObjectKey], sizes: Sequence[int]) -> None:
        """Deleting by key is an operator's act, and answered to the operator."""

    def on_l2_keys_evicted(self, keys: Sequence[ObjectKey]) -> None:
        for key in keys:
            self._metrics.evicted_objects.add(1, key.cache_salt)


class _HasTiers(Protocol):
    def tiers(self) -> list[Tier]: ...


def register_gauges(metrics: MetricRegistry, owner: _HasTiers) -> None:
    """What can be asked of the tiers at any time. Series of idle adapters are absent where the documents say so."""

    def usage_by_name() -> dict[Labels, float]:
        usage: dict[Labels, float] = {}
        for tier in owner.tiers():
            usage[tier.name,] = usage.get((tier.name,), 0) + tier.adapter.usage().total_bytes_used
        return usage

    def per_tier(read: Callable[[Tier], float]) -> Callable[[], dict[Labels, float]]:
        return lambda: {(tier.name, str(tier.index)): read(tier) for tier in owner.tiers()}

    def inflight(position: int) -> Callable[[], dict[Labels, float]]:
        return lambda: {
            (tier.name, str(tier.index)): count for tier in owner.tiers() if (count := tier.inflight()[position])
        }

    gauge = metrics.gauge
    gauge(_PREFIX + "l2_usage_bytes", "Bytes stored by adapters of a type", usage_by_name, "l2_name")
    gauge(_PREFIX + "l2_healthy", "1: the adapter answers", per_tier(lambda tier: float(tier.is_healthy)),
          "l2_name", "adapter_index")  # fmt: skip
    gauge(_PREFIX + "l2_breaker_open", "1: the adapter is left alone after failures",
          per_tier(lambda tier: float(tier.breaker.state is not BreakerState.CLOSED)),
          "l2_name", "adapter_index")  # fmt: skip
    gauge(_PREFIX + "num_inflight_l2_stores", "Stores queued or under way", inflight(0), "l2_name", "adapter_index")
    gauge(_PREFIX + "num_inflight_l2_loads", "Loads queued or under way", inflight(1), "l2_name", "adapter_index")
    gauge(_PREFIX + "inflight_load_memory_usage_bytes", "Bytes being loaded", inflight(2), "l2_name", "adapter_index")

    def by_state() -> dict[Labels, float]:
        states = [tier.state for tier in owner.tiers()]
        return {(str(state),): states.count(state) for state in (TierState.ACTIVE, TierState.DRAINING)}

    gauge(_PREFIX + "l2_adapters", "Adapters by state", by_state, "state")
