"""What each tenant holds, as it counts against its quota. The one number that operators are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from lmcache.eviction import policy_name
from lmcache.l1.manager import L1Manager
from lmcache.storage.eviction_controller import PER_TENANT_POLICY
from lmcache.storage.manager import StorageManager


class TenantUsage:
    """Counts the tiers that evict by quota: L1 under `l1_policy`, and each adapter under its own. Where none
    does, all of them. Any thread."""

    def __init__(self, storage: StorageManager, find_l1: Callable[[], L1Manager], l1_policy: str) -> None:
        self._storage = storage
        self._find_l1 = find_l1
        self._l1_has_quotas = policy_name(l1_policy) == PER_TENANT_POLICY

    def bytes_by_salt(self) -> dict[str, int]:
        """What each tenant holds in all of them together: what its limit is held against."""
        total: Counter[str] = Counter()
        for part in self.parts():
            total.update(part)
        return dict(total)

    def parts(self) -> list[Mapping[str, int]]:
        """The same, tier by tier; L1 first, where it counts."""
        tiers = self._storage.tiers()
        with_quotas = [tier for tier in tiers if self._storage.evicts_by_quota(tier)]
        has_quotas = self._l1_has_quotas or bool(with_quotas)
        parts: list[Mapping[str, int]] = []
        if self._l1_has_quotas or not has_quotas:
            parts.append(self._find_l1().usage_bytes_by_salt())
        return parts + [tier.adapter.usage().bytes_by_cache_salt for tier in (with_quotas if has_quotas else tiers)]
