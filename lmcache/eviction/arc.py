"""ARC, adaptive replacement: what was used once against what was used again, each with its ghosts.

N. Megiddo, D. Modha: "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. A key
that comes back after it was evicted says which of the two lists was too short; the share
`_recent_target` follows. Scans of prompts nobody repeats pass through the first list only.

The paper's cache holds a fixed number of pages. Ours holds bytes and knows no number: its
size is the number of slots tracked when an eviction begins. The paper also decides whom to
replace knowing the newcomer; here room is made first, so a ghost's lesson counts from the
next victim on.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmcache.eviction.ghosts import KEY_HASH_MASK, Ghosts
from lmcache.eviction.slot_lists import END, SlotLinks, SlotList, check_unknown, grow, refuse_tenant

_UNKNOWN, _RECENT, _FREQUENT, _HELD_RECENT, _HELD_FREQUENT = range(5)
_HELD = _HELD_RECENT - _RECENT


class Policy:
    """`recent` and `frequent` are the paper's T1 and T2, their ghosts its B1 and B2."""

    name: ClassVar[str] = "ARC"
    is_per_tenant: ClassVar[bool] = False

    def __init__(self) -> None:
        self._links = SlotLinks()
        self._recent = SlotList(self._links)
        self._frequent = SlotList(self._links)
        self._recent_ghosts = Ghosts()
        self._frequent_ghosts = Ghosts()
        self._counts = [0] * 5  # slots by state
        self._states = array("b")
        self._hashes = array("Q")
        self._recent_target = 0.0  # the paper's p: how many slots the recent list should have
        self._size = 0  # the paper's c
        self._is_evicting = False

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        self._links.reach(slot)
        grow(slot + 1, self._states, self._hashes)
        self._hashes[slot] = key_hash & KEY_HASH_MASK
        self._is_evicting = False
        state = _FREQUENT if self._learn(self._hashes[slot]) else _RECENT
        self._set_state(slot, state)
        self._list_of(state).append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            state = self._state(slot)
            if state == _FREQUENT:
                self._frequent.move_to_end(slot)
            elif state == _RECENT:
                self._recent.unlink(slot)
                self._frequent.append(slot)
                self._set_state(slot, _FREQUENT)
            elif state == _HELD_RECENT:
                self._set_state(slot, _HELD_FREQUENT)

    def refresh(self, slots: Iterable[int]) -> None:
        for slot in slots:
            state = self._state(slot)
            if state in (_RECENT, _FREQUENT):
                self._list_of(state).move_to_end(slot)

    def hold(self, slot: int) -> None:
        state = self._state(slot)
        if state in (_RECENT, _FREQUENT):
            self._list_of(state).unlink(slot)
            self._set_state(slot, state + _HELD)

    def release(self, slot: int) -> None:
        state = self._state(slot)
        if state > _HELD:
            self._set_state(slot, state - _HELD)
            self._list_of(state - _HELD).append(slot)

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        state = self._state(slot)
        if state == _UNKNOWN:
            return
        if is_evicted and not self._is_evicting:
            self._is_evicting = True
            self._size = len(self)
        if state <= _HELD:
            self._list_of(state).unlink(slot)
        self._set_state(slot, _UNKNOWN)
        if is_evicted:
            self._remember(slot, state)

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        refuse_tenant(self.name, tenant)
        return self._walk()

    def __len__(self) -> int:
        return sum(self._counts[_RECENT:])

    def _walk(self) -> Iterator[int]:
        recent, frequent = self._recent.first, self._frequent.first
        num_recent = self._counts[_RECENT] + self._counts[_HELD_RECENT]
        while recent != END or frequent != END:
            if recent != END and (num_recent > self._recent_target or frequent == END):
                victim, recent = recent, self._recent.after(recent)
                num_recent -= 1
            else:
                victim, frequent = frequent, self._frequent.after(frequent)
            yield victim

    def _learn(self, key_hash: int) -> bool:
        """Follow what a newcomer says about the lists, if it was here before; whether it was."""
        num_recent, num_frequent = len(self._recent_ghosts), len(self._frequent_ghosts)
        if self._recent_ghosts.discard(key_hash):
            self._recent_target = min(self._size, self._recent_target + max(1.0, num_frequent / num_recent))
            return True
        if self._frequent_ghosts.discard(key_hash):
            self._recent_target = max(0.0, self._recent_target - max(1.0, num_recent / num_frequent))
            return True
        return False

    def _remember(self, slot: int, state: int) -> None:
        """Recent slots and their ghosts are as many as the cache holds; all four lists, twice that."""
        ghosts = self._recent_ghosts if state in (_RECENT, _HELD_RECENT) else self._frequent_ghosts
        ghosts.add(self._hashes[slot])
        num_recent = self._counts[_RECENT] + self._counts[_HELD_RECENT]
        self._recent_ghosts.trim(self._size - num_recent)
        self._frequent_ghosts.trim(2 * self._size - len(self) - len(self._recent_ghosts))

    def _list_of(self, state: int) -> SlotList:
        return self._recent if state == _RECENT else self._frequent

    def _state(self, slot: int) -> int:
        return self._states[slot] if 0 <= slot < len(self._states) else _UNKNOWN

    def _set_state(self, slot: int, state: int) -> None:
        self._counts[self._states[slot]] -= 1
        self._counts[state] += 1
        self._states[slot] = state
