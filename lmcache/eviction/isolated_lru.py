"""Least recently used, with an order for each tenant beside the one over all.

Its owner knows what each tenant may hold, and asks for the victims of those that hold
more; this file only says who is oldest.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmcache.eviction.slot_lists import SlotLinks, SlotList, check_unknown, grow

_UNKNOWN, _LISTED, _HELD = range(3)


class _Tenant:
    """One tenant's slots, oldest first, and how many it has, held ones included."""

    __slots__ = ("name", "num_slots", "order")

    def __init__(self, name: str, links: SlotLinks) -> None:
        self.name = name
        self.order = SlotList(links)
        self.num_slots = 0


class Policy:
    """Held slots stand outside both orders. A tenant without slots leaves nothing behind."""

    name: ClassVar[str] = "IsolatedLRU"
    is_per_tenant: ClassVar[bool] = True

    def __init__(self) -> None:
        self._links = SlotLinks()
        self._order = SlotList(self._links)
        self._tenant_links = SlotLinks()
        self._tenants: dict[str, _Tenant] = {}
        self._tenant_of: list[_Tenant | None] = []
        self._states = array("b")
        self._num_held = 0

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        self._reach(slot)
        owner = self._tenants.get(tenant)
        if owner is None:
            owner = self._tenants[tenant] = _Tenant(tenant, self._tenant_links)
        owner.num_slots += 1
        self._tenant_of[slot] = owner
        self._states[slot] = _LISTED
        self._order.append(slot)
        owner.order.append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if self._state(slot) == _LISTED:
                self._order.move_to_end(slot)
                self._owner(slot).order.move_to_end(slot)

    def refresh(self, slots: Iterable[int]) -> None:
        self.touch(slots)

    def hold(self, slot: int) -> None:
        if self._state(slot) == _LISTED:
            self._order.unlink(slot)
            self._owner(slot).order.unlink(slot)
            self._states[slot] = _HELD
            self._num_held += 1

    def release(self, slot: int) -> None:
        if self._state(slot) == _HELD:
            self._order.append(slot)
            self._owner(slot).order.append(slot)
            self._states[slot] = _LISTED
            self._num_held -= 1

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        state = self._state(slot)
        if state == _UNKNOWN:
            return
        owner = self._owner(slot)
        if state == _LISTED:
            self._order.unlink(slot)
            owner.order.unlink(slot)
        else:
            self._num_held -= 1
        self._states[slot] = _UNKNOWN
        self._tenant_of[slot] = None
        owner.num_slots -= 1
        if not owner.num_slots:
            del self._tenants[owner.name]

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        if tenant is None:
            return iter(self._order)
        owner = self._tenants.get(tenant)
        return iter(owner.order) if owner is not None else iter(())

    def __len__(self) -> int:
        return len(self._order) + self._num_held

    def _state(self, slot: int) -> int:
        return self._states[slot] if 0 <= slot < len(self._states) else _UNKNOWN

    def _owner(self, slot: int) -> _Tenant:
        owner = self._tenant_of[slot]
        assert owner is not None
        return owner

    def _reach(self, slot: int) -> None:
        self._links.reach(slot)
        self._tenant_links.reach(slot)
        grow(slot + 1, self._states)
        self._tenant_of += [None] * (len(self._states) - len(self._tenant_of))
