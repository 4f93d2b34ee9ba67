"""Brings tenants back to their quotas, over all tiers that evict by them, a bounded number of objects at a time.

A limit holds for what a tenant keeps in all those tiers together; whoever holds most of it gives first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from lmcache.engine.usage import TenantUsage
from lmcache.l1.manager import L1Manager
from lmcache.quota.manager import QuotaManager
from lmcache.quota.shares import level_of
from lmcache.quota.wipes import WipeLog

_OBJECTS_PER_SLICE = 512
# Between two slices, for whoever waits for the mutex.
_PAUSE_S = 0.0005


class TierLimits:
    """What one tier may keep of a tenant; implements `storage`'s `TenantLimits`. Any thread."""

    def __init__(self, quotas: QuotaManager, wipes: WipeLog, find_usage: Callable[[], TenantUsage]) -> None:
        self._quotas = quotas
        self._wipes = wipes
        self._find_usage = find_usage

    def excess(self, usage_bytes: Mapping[str, int]) -> Mapping[str, int]:
        """What a tier that holds this must give up, by tenant."""
        parts = self._find_usage().parts()
        found = {}
        for tenant, held in usage_bytes.items():
            everywhere = [part[tenant] for part in parts if tenant in part]
            level = level_of(self._quotas.limit_bytes(tenant), everywhere)
            if held > level:
                found[tenant] = held - level
        return found

    def evicted(self, tier: str, tenant: str, num_objects: int, num_bytes: int) -> None:
        """Told of in the log where the tenant may keep nothing only because nobody registered it."""
        if num_objects and self._quotas.is_wiped(tenant):
            self._wipes.note(tier, tenant, num_objects, num_bytes)


class QuotaCycle:
    """The part of it that concerns L1. `open_l1` gives L1 under the engine's mutex for one slice, or None
    where there is none to look at, or its policy knows no tenants."""

    def __init__(self, limits: TierLimits, open_l1: Callable[[], AbstractContextManager[L1Manager | None]]) -> None:
        self._limits = limits
        self._open_l1 = open_l1

    def run(self) -> int:
        """Evict what tenants hold beyond their quotas, but what is locked; how many objects. Not under the mutex."""
        with self._open_l1() as l1:
            usage = l1.usage_bytes_by_salt() if l1 is not None and l1.is_per_tenant else {}
            if l1 is not None:
                l1.tenants_beyond_limit()  # a limit may have shrunk: from now on they pay first in a full pool
        excess = self._limits.excess(usage) if usage else {}
        return sum(self._bring_back(tenant, usage[tenant] - beyond) for tenant, beyond in excess.items())

    def _bring_back(self, tenant: str, limit_bytes: int) -> int:
        num_evicted = num_bytes = 0
        while True:
            with self._open_l1() as l1:
                if l1 is None:
                    break
                num_more, bytes_more = l1.evict_excess(tenant, limit_bytes, _OBJECTS_PER_SLICE)
            num_evicted += num_more
            num_bytes += bytes_more
            if num_more < _OBJECTS_PER_SLICE:
                break
            time.sleep(_PAUSE_S)
        self._limits.evicted("L1", tenant, num_evicted, num_bytes)
        return num_evicted
