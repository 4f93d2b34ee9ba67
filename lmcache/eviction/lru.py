"""Least recently used. With prompts touched from tail to head, leaves go before their roots."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmcache.eviction.slot_lists import SlotLinks, SlotList, check_unknown, grow, refuse_tenant

_UNKNOWN, _LISTED, _HELD = range(3)


class Policy:
    """Held slots stand outside the order: the first in it may always go."""

    name: ClassVar[str] = "LRU"
    is_per_tenant: ClassVar[bool] = False

    def __init__(self) -> None:
        self._links = SlotLinks()
        self._order = SlotList(self._links)
        self._states = array("b")
        self._num_held = 0

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        self._links.reach(slot)
        grow(slot + 1, self._states)
        self._states[slot] = _LISTED
        self._order.append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        states, move_to_end = self._states, self._order.move_to_end
        num_known = len(states)
        for slot in slots:
            if 0 <= slot < num_known and states[slot] == _LISTED:
                move_to_end(slot)

    def refresh(self, slots: Iterable[int]) -> None:
        self.touch(slots)

    def hold(self, slot: int) -> None:
        if self._state(slot) == _LISTED:
            self._order.unlink(slot)
            self._states[slot] = _HELD
            self._num_held += 1

    def release(self, slot: int) -> None:
        if self._state(slot) == _HELD:
            self._order.append(slot)
            self._states[slot] = _LISTED
            self._num_held -= 1

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        state = self._state(slot)
        if state == _LISTED:
            self._order.unlink(slot)
        elif state == _HELD:
            self._num_held -= 1
        else:
            return
        self._states[slot] = _UNKNOWN

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        refuse_tenant(self.name, tenant)
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order) + self._num_held

    def _state(self, slot: int) -> int:
        return self._states[slot] if 0 <= slot < len(self._states) else _UNKNOWN
