"""Reads stored objects back in the background and removes those that rotted, at a bounded rate."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.errors import L2Error
from lmcache.l2.base import L2Adapter
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierState

logger = logging.getLogger(__name__)

_KEYS_PER_STEP = 16


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """`objects_per_s` 0: no scrub. An adapter's objects are gone through again and again, in its own order."""

    objects_per_s: float = 0.0


class Scrubber:
    """`cycle` from one thread, every second or so."""

    def __init__(self, config: ScrubConfig, metrics: StorageMetrics, clock: Callable[[], float]) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._cursors: dict[int, int] = {}
        self._last_s = clock()
        self._credit = 0.0
        self.num_verified = 0
        self.num_removed = 0

    def cycle(self, tiers: Sequence[Tier]) -> dict[str, object]:
        """Spend what the rate allows since the last cycle, on all tiers alike."""
        now_s = self._clock()
        rate = self._config.objects_per_s
        self._credit = min(self._credit + (now_s - self._last_s) * rate, max(1.0, rate))
        self._last_s = now_s
        usable = [tier for tier in tiers if tier.state is TierState.ACTIVE and tier.is_usable]
        num_verified = 0
        while self._credit >= 1 and usable:
            for tier in list(usable):
                budget = min(_KEYS_PER_STEP, int(self._credit))
                count = self._step(tier, budget) if budget else 0
                self._credit -= count
                num_verified += count
                if count < budget or not budget:
                    usable.remove(tier)  # one round through it, or no credit left
        return {"verified": num_verified, "removed_so_far": self.num_removed}

    def _step(self, tier: Tier, num_keys_max: int) -> int:
        try:
            keys, following = tier.adapter.keys_after(self._cursors.get(tier.index, 0), num_keys_max)
            self._cursors[tier.index] = following
            for key in keys:
                is_whole = tier.call(functools.partial(_verify, key))
                self._metrics.scrubbed.add(1, tier.name)
                self.num_verified += 1
                if not is_whole:
                    self.num_removed += 1
                    self._metrics.corrupt_objects.add(1, tier.name)
        except L2Error as error:
            logger.warning("the scrub of L2 adapter %s stopped for now: %s", tier.name, error)
            return 0
        return len(keys)

    def report(self) -> dict[str, object]:
        return {
            "objects_per_second": self._config.objects_per_s,
            "verified_count": self.num_verified,
            "removed_count": self.num_removed,
        }


def _verify(key: ObjectKey, adapter: L2Adapter) -> bool:
    return adapter.verify(key)
