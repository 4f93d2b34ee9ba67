"""Never evicts: when a tier is full, stores are refused until something is deleted."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmcache.eviction.slot_lists import check_unknown, grow, refuse_tenant


class Policy:
    """Knows which slots there are, and offers none."""

    name: ClassVar[str] = "noop"
    is_per_tenant: ClassVar[bool] = False

    def __init__(self) -> None:
        self._is_tracked = array("b")
        self._num_tracked = 0

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        grow(slot + 1, self._is_tracked)
        self._is_tracked[slot] = True
        self._num_tracked += 1

    def touch(self, slots: Iterable[int]) -> None:
        """No order, so nothing to note."""

    def refresh(self, slots: Iterable[int]) -> None:
        """No order, so nothing to note."""

    def hold(self, slot: int) -> None:
        """No slot ever goes."""

    def release(self, slot: int) -> None:
        """No slot ever goes."""

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        if self._state(slot):
            self._is_tracked[slot] = False
            self._num_tracked -= 1

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        refuse_tenant(self.name, tenant)
        return iter(())

    def __len__(self) -> int:
        return self._num_tracked

    def _state(self, slot: int) -> int:
        return self._is_tracked[slot] if 0 <= slot < len(self._is_tracked) else False
