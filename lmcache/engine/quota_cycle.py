"""Brings tenants of L1 back to their quotas, a bounded number of objects at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from lmcache.l1.manager import L1Manager
from lmcache.quota.manager import QuotaManager
from lmcache.quota.wipes import WipeLog

_OBJECTS_PER_SLICE = 512
# Between two slices, for whoever waits for the mutex.
_PAUSE_S = 0.0005


class QuotaCycle:
    """`open_l1` gives L1 under the engine's mutex for one slice, or None where there is none to look at."""

    def __init__(
        self, quotas: QuotaManager, wipes: WipeLog, open_l1: Callable[[], AbstractContextManager[L1Manager | None]]
    ) -> None:
        self._quotas = quotas
        self._wipes = wipes
        self._open_l1 = open_l1

    def run(self) -> int:
        """Evict what tenants hold beyond their quotas, but what is locked; how many objects. Not under the mutex."""
        with self._open_l1() as l1:
            tenants = l1.tenants_beyond_limit() if l1 is not None else []
        return sum(self._bring_back(tenant) for tenant in tenants)

    def _bring_back(self, tenant: str) -> int:
        num_evicted = num_bytes = 0
        while True:
            with self._open_l1() as l1:
                if l1 is None:
                    break
                num_more, bytes_more = l1.evict_excess(tenant, _OBJECTS_PER_SLICE)
            num_evicted += num_more
            num_bytes += bytes_more
            if num_more < _OBJECTS_PER_SLICE:
                break
            time.sleep(_PAUSE_S)
        if self._quotas.is_wiped(tenant):
            self._wipes.note("L1", tenant, num_evicted, num_bytes)
        return num_evicted


class TierLimits:
    """Quotas as L2 adapters with a policy per tenant see them; implements `storage`'s `TenantLimits`."""

    def __init__(self, quotas: QuotaManager, wipes: WipeLog) -> None:
        self._quotas = quotas
        self._wipes = wipes

    def excess(self, usage_bytes: Mapping[str, int]) -> Mapping[str, int]:
        return self._quotas.excess(usage_bytes)

    def evicted(self, tier: str, tenant: str, num_objects: int, num_bytes: int) -> None:
        """Told of in the log where the tenant may keep nothing only because nobody registered it."""
        if num_objects and self._quotas.is_wiped(tenant):
            self._wipes.note(tier, tenant, num_objects, num_bytes)
