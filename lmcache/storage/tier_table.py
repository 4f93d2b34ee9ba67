"""The tiers in use, by their number for life."""

from __future__ import annotations

import threading

from lmcache.storage.tier import Tier


class TierTable:
    """Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tiers: dict[int, Tier] = {}

    def add(self, tier: Tier) -> None:
        with self._mutex:
            self._tiers[tier.index] = tier

    def remove(self, index: int) -> Tier | None:
        with self._mutex:
            return self._tiers.pop(index, None)

    def get(self, index: int) -> Tier | None:
        with self._mutex:
            return self._tiers.get(index)

    def usable(self) -> list[Tier]:
        """Those that are worth asking now, and may be asked."""
        with self._mutex:
            return [tier for tier in self._tiers.values() if tier.route.reads and tier.is_usable]

    def position(self, index: int) -> tuple[int, int]:
        """A tier's place in the order of search."""
        tier = self.get(index)
        return (tier.route.position if tier is not None else 0), index
