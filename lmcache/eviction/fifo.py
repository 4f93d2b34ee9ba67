"""First in, first out: what was stored first goes first, however often it was used."""

from __future__ import annotations

from typing import ClassVar

from lmcache.eviction.ranked import RankedPolicy


class Policy(RankedPolicy):
    name: ClassVar[str] = "FIFO"
    is_per_tenant: ClassVar[bool] = False

    def _rank(self, slot: int) -> int:
        return self._added[slot]
