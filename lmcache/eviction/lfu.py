"""Least frequently used; the least recent among equals. What was popular once stays for long."""

from __future__ import annotations

from typing import ClassVar

from lmcache.eviction.ranked import RankedPolicy

_TICK_BITS = 56


class Policy(RankedPolicy):
    name: ClassVar[str] = "LFU"
    is_per_tenant: ClassVar[bool] = False

    def _rank(self, slot: int) -> int:
        return self._uses[slot] << _TICK_BITS | self._used[slot]
