"""Reads stored objects back in the background and removes those that rotted, at a bounded rate.

The reads are a chore of each tier: a backend that hangs holds up its own scrub only.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.errors import L2Error
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier

logger = logging.getLogger(__name__)

# A chore ends after so long, with one read more: stores may be waiting for its thread.
_CHORE_S = 0.5


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """`objects_per_s` 0: no scrub. An adapter's objects are gone through again and again, in its own order."""

    objects_per_s: float = 0.0


class Scrubber:
    """`cycle` from one thread, every second or so; the rest happens in the threads of tiers."""

    def __init__(self, config: ScrubConfig, metrics: StorageMetrics, clock: Callable[[], float]) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        # By tier: only its chore changes it, and there is one of it at a time.
        self._cursors: dict[int, int] = {}
        self._mutex = threading.Lock()
        self._last_s = clock()
        self._credit = 0.0
        self.num_verified = 0
        self.num_removed = 0

    def cycle(self, tiers: Sequence[Tier]) -> dict[str, object]:
        """Let all tiers alike spend what the rate allows since the last cycle."""
        usable = [tier for tier in tiers if tier.is_usable]
        for position, tier in enumerate(usable):
            budget = self._take_share(len(usable) - position)
            if budget and not tier.submit_chore("scrub", functools.partial(self._scrub, tier, budget)):
                self._give_back(budget)
        return {"verified_so_far": self.num_verified, "removed_so_far": self.num_removed}

    def _take_share(self, num_tiers: int) -> int:
        """What one of so many tiers may spend now, at least one object while there is any."""
        now_s, rate = self._clock(), self._config.objects_per_s
        with self._mutex:
            self._credit = min(self._credit + (now_s - self._last_s) * rate, max(1.0, rate))
            self._last_s = now_s
            share = math.ceil(int(self._credit) / num_tiers)
            self._credit -= share
            return share

    def _give_back(self, num_objects: int) -> None:
        with self._mutex:
            self._credit += num_objects

    def _scrub(self, tier: Tier, budget: int) -> None:
        """In a thread of the tier: as many objects as that, or as there are, or as there is time for."""
        ends_s = self._clock() + _CHORE_S
        try:
            while budget and self._clock() < ends_s:
                keys, following = tier.adapter.keys_after(self._cursors.get(tier.index, 0), 1)
                self._cursors[tier.index] = following
                for key in keys:
                    self._verify(tier, key)
                    budget -= 1
                if not following:
                    break  # one round through it
        except L2Error as error:
            logger.warning("the scrub of L2 adapter %s stopped for now: %s", tier.name, error)
        finally:
            self._give_back(budget)

    def _verify(self, tier: Tier, key: ObjectKey) -> None:
        is_whole = tier.call(lambda adapter: adapter.verify(key))
        self._metrics.scrubbed.add(1, tier.name)
        if not is_whole:
            self._metrics.corrupt_objects.add(1, tier.name)
        with self._mutex:
            self.num_verified += 1
            self.num_removed += not is_whole

    def report(self) -> dict[str, object]:
        return {
            "objects_per_second": self._config.objects_per_s,
            "verified_count": self.num_verified,
            "removed_count": self.num_removed,
        }
