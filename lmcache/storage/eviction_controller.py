"""Keeps L2 adapters within their watermarks and tenants within their quotas.

One loop decides, once a second; the tiers do it, so that one whose backend hangs holds up no other.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from typing import Protocol

from lmcache.errors import L2Error
from lmcache.l2.base import EvictionConfig, L2Adapter
from lmcache.storage.tier import Tier
from lmcache.storage.tier_life import TierState

logger = logging.getLogger(__name__)

PER_TENANT_POLICY = "IsolatedLRU"
_TENANT_OBJECTS_MAX = 10_000


class TenantLimits(Protocol):
    """What tenants may hold, and who wants to know what was taken from them."""

    def excess(self, usage_bytes: Mapping[str, int]) -> Mapping[str, int]:
        """Bytes over the limit, by tenant, given what each holds."""

    def evicted(self, tier: str, tenant: str, num_objects: int, num_bytes: int) -> None:
        """A tenant was brought back to its limit."""


class L2EvictionController:
    """`cycle` from one thread. `eviction_of` tells what was configured for a tier; `limits` is asked from many."""

    def __init__(self, eviction_of: Mapping[int, EvictionConfig | None], limits: TenantLimits) -> None:
        self._eviction_of = eviction_of
        self._limits = limits
        self._warned: set[int] = set()
        self._mutex = threading.Lock()
        self._num_evicted = 0

    def cycle(self, tiers: list[Tier]) -> dict[str, object]:
        for tier in tiers:
            if tier.state is TierState.ACTIVE:
                self._warn_about(tier)
                tier.adapter.expire_leases()
                tier.submit_chore("eviction", functools.partial(self._keep_house, tier))
        with self._mutex:
            num_evicted, self._num_evicted = self._num_evicted, 0
        return {"evicted": num_evicted}

    def _keep_house(self, tier: Tier) -> None:
        """In a thread of the tier."""
        if tier.route.is_frozen:
            return
        # Past the breaker: a backend that is back is noticed here, and a round with nothing to do proves nothing.
        try:
            tier.adapter.tick()
        except L2Error as error:
            logger.warning("L2 adapter %s: %s", tier.name, error)
        config = self._eviction_of.get(tier.index)
        if config is None or tier.adapter.context.is_reader or not tier.is_usable:
            return
        try:
            num_evicted = tier.call(functools.partial(self._evict, tier.name, config))
        except L2Error as error:
            logger.warning("eviction from L2 adapter %s failed: %s", tier.name, error)
            return
        with self._mutex:
            self._num_evicted += num_evicted

    def _evict(self, name: str, config: EvictionConfig, adapter: L2Adapter) -> int:
        num_evicted = 0
        usage = adapter.usage()
        if config.eviction_policy == PER_TENANT_POLICY:
            for tenant, excess_bytes in self._limits.excess(usage.bytes_by_cache_salt).items():
                num_objects, num_bytes = adapter.evict(excess_bytes, _TENANT_OBJECTS_MAX, tenant)
                self._limits.evicted(name, tenant, num_objects, num_bytes)
                num_evicted += num_objects
            usage = adapter.usage()
        if not usage.total_capacity_bytes:
            return num_evicted
        over_bytes = usage.total_bytes_used - int(config.trigger_watermark * usage.total_capacity_bytes)
        if over_bytes > 0:
            num_objects_max = max(1, int(adapter.num_objects * config.eviction_ratio))
            num_evicted += adapter.evict(over_bytes, num_objects_max)[0]
        return num_evicted

    def _warn_about(self, tier: Tier) -> None:
        """Once: a policy that needs a capacity to compare with, on an adapter that has none, which shows when it is
        open."""
        config = self._eviction_of.get(tier.index)
        needs_capacity = config is not None and config.eviction_policy not in (PER_TENANT_POLICY, "noop")
        if needs_capacity and not tier.adapter.usage().total_capacity_bytes and tier.index not in self._warned:
            self._warned.add(tier.index)
            logger.warning(
                "L2 adapter %s has an eviction policy but no capacity: it grows without bound (set max_capacity_gb)",
                tier.name,
            )

    def report(self, tiers: list[Tier]) -> list[dict[str, object]]:
        """One entry per adapter that evicts."""
        found: list[dict[str, object]] = []
        for tier in tiers:
            config = self._eviction_of.get(tier.index)
            if config is None and tier.adapter.eviction_policy is None:
                continue
            usage = tier.adapter.usage()
            found.append(
                {
                    "l2_name": tier.name,
                    "eviction_policy": config.eviction_policy if config else tier.adapter.eviction_policy,
                    # Without a configuration: when it is full, and no more than the next object needs.
                    "trigger_watermark": config.trigger_watermark if config else 1.0,
                    "eviction_ratio": config.eviction_ratio if config else 0.0,
                    "current_usage": usage.usage_fraction,
                    "total_bytes_used": usage.total_bytes_used,
                    "total_capacity_bytes": usage.total_capacity_bytes,
                    "num_cache_salt_buckets": len(usage.bytes_by_cache_salt),
                }
            )
        return found
