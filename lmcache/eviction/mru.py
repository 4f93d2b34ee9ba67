"""Most recently used goes first: for traffic that cycles through more than fits, and for nothing else.

A prompt's head is used last, so it goes before its tail: the rest of that prompt is then of no use.
"""

from __future__ import annotations

from typing import ClassVar

from lmcache.eviction.ranked import RankedPolicy


class Policy(RankedPolicy):
    name: ClassVar[str] = "MRU"
    is_per_tenant: ClassVar[bool] = False

    def _rank(self, slot: int) -> int:
        return -self._used[slot]
