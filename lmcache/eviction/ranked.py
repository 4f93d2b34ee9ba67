"""Base of the policies that give every slot a rank: the lowest of those that are not held goes first.

What changes a rank is the policy's; this keeps the order. Costs more memory and time than the linked
lists of LRU, which is why LRU does not use it.
"""

from __future__ import annotations

import abc
from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from sortedcontainers import SortedList

from lmcache.eviction.slot_lists import check_unknown, grow, refuse_tenant

_UNKNOWN, _LISTED, _HELD = range(3)
_SLOT_BITS = 32
_SLOT_MASK = (1 << _SLOT_BITS) - 1


class RankedPolicy(abc.ABC):
    """Implements `EvictionPolicy` but for `name` and `is_per_tenant`. `_tick` counts what happened so far."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._tick = 0
        self._uses = array("q")
        self._added = array("q")
        self._used = array("q")
        self._states = array("b")
        # Rank and slot in one integer: the garbage collector does not look at those.
        self._order: SortedList = SortedList()
        self._num_held = 0

    @abc.abstractmethod
    def _rank(self, slot: int) -> int:
        """Of a known slot, from what is noted about it: `_uses`, and the ticks `_added` and `_used`."""

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        grow(slot + 1, self._uses, self._added, self._used, self._states)
        self._tick += 1
        self._uses[slot], self._added[slot], self._used[slot] = 1, self._tick, self._tick
        self._list(slot)

    def touch(self, slots: Iterable[int]) -> None:
        self._note(slots, num_uses=1)

    def refresh(self, slots: Iterable[int]) -> None:
        self._note(slots, num_uses=0)

    def _note(self, slots: Iterable[int], num_uses: int) -> None:
        for slot in slots:
            state = self._state(slot)
            if state == _UNKNOWN:
                continue
            if state == _LISTED:
                self._order.remove(self._entry(slot))
            self._tick += 1
            self._uses[slot] += num_uses
            self._used[slot] = self._tick
            if state == _LISTED:
                self._list(slot)

    def hold(self, slot: int) -> None:
        if self._state(slot) == _LISTED:
            self._order.remove(self._entry(slot))
            self._states[slot] = _HELD
            self._num_held += 1

    def release(self, slot: int) -> None:
        if self._state(slot) == _HELD:
            self._tick += 1
            self._used[slot] = self._tick
            self._num_held -= 1
            self._list(slot)

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        state = self._state(slot)
        if state == _LISTED:
            self._order.remove(self._entry(slot))
        elif state == _HELD:
            self._num_held -= 1
        if state != _UNKNOWN:
            self._states[slot] = _UNKNOWN

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        refuse_tenant(self.name, tenant)
        return self._walk()

    def _walk(self) -> Iterator[int]:
        """Finds its place again after each victim, since that one may be gone."""
        position = 0
        while position < len(self._order):
            entry = self._order[position]
            yield entry & _SLOT_MASK
            if position < len(self._order) and self._order[position] == entry:
                position += 1

    def __len__(self) -> int:
        return len(self._order) + self._num_held

    def _list(self, slot: int) -> None:
        self._states[slot] = _LISTED
        self._order.add(self._entry(slot))

    def _entry(self, slot: int) -> int:
        return self._rank(slot) << _SLOT_BITS | slot

    def _state(self, slot: int) -> int:
        return self._states[slot] if 0 <= slot < len(self._states) else _UNKNOWN
