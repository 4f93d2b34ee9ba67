"""S3-FIFO: a small queue that newcomers must survive, a main queue, and ghosts of those that did not.

J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak: "FIFO queues are all you need for cache
eviction", SOSP 2023. Strong where most prompts come once and the cache is small; where a
conversation comes back later than a tenth of the cache turns over, LRU and ARC do better.

The paper's cache holds a fixed number of objects. Ours holds bytes and knows no number: the
small queue gives way while it has a tenth of what is queued, and there are at most as many
ghosts as slots were tracked when an eviction began.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmcache.eviction.ghosts import KEY_HASH_MASK, Ghosts
from lmcache.eviction.slot_lists import END, SlotLinks, SlotList, check_unknown, grow, refuse_tenant

_UNKNOWN, _SMALL, _MAIN, _PARKED = range(4)
_NUM_USES_MAX = 3
_NUM_USES_TO_STAY = 2
_SMALL_SHARE = 0.1


class Policy:
    """A held slot keeps its place. One that a walk for victims meets is parked outside the queues,
    and enters the main queue when it is released: it was in use when its turn came."""

    name: ClassVar[str] = "S3-FIFO"
    is_per_tenant: ClassVar[bool] = False

    def __init__(self) -> None:
        self._links = SlotLinks()
        self._small = SlotList(self._links)
        self._main = SlotList(self._links)
        self._ghosts = Ghosts()
        self._states = array("b")
        self._is_held = array("b")
        self._num_uses = array("b")
        self._hashes = array("Q")
        self._num_parked = 0
        self._size = 0
        self._is_evicting = False

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        check_unknown(slot, self._state(slot))
        self._links.reach(slot)
        grow(slot + 1, self._states, self._is_held, self._num_uses, self._hashes)
        self._is_evicting = False
        self._hashes[slot] = key_hash & KEY_HASH_MASK
        self._is_held[slot] = False
        self._num_uses[slot] = 0
        if self._ghosts.discard(self._hashes[slot]):
            self._enter_main(slot)
        else:
            self._states[slot] = _SMALL
            self._small.append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        uses = self._num_uses
        for slot in slots:
            if self._state(slot) != _UNKNOWN and uses[slot] < _NUM_USES_MAX:
                uses[slot] += 1

    def refresh(self, slots: Iterable[int]) -> None:
        """A queue knows no recency."""

    def hold(self, slot: int) -> None:
        if self._state(slot) != _UNKNOWN:
            self._is_held[slot] = True

    def release(self, slot: int) -> None:
        state = self._state(slot)
        if state == _UNKNOWN:
            return
        self._is_held[slot] = False
        if state == _PARKED:
            self._num_parked -= 1
            self._enter_main(slot)

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        state = self._state(slot)
        if state == _UNKNOWN:
            return
        if is_evicted and not self._is_evicting:
            self._is_evicting = True
            self._size = len(self)
        self._take_out(slot, state)
        self._states[slot] = _UNKNOWN
        if is_evicted and state == _SMALL:
            self._ghosts.add(self._hashes[slot])
            self._ghosts.trim(self._size)

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        refuse_tenant(self.name, tenant)
        return self._walk()

    def __len__(self) -> int:
        return len(self._small) + len(self._main) + self._num_parked

    def _walk(self) -> Iterator[int]:
        """Behind the cursors lies what was offered, if it is still there; it counts as gone."""
        small, main = self._small.first, self._main.first
        num_small, num_main = len(self._small), len(self._main)
        while small != END or main != END:
            if small != END and (num_small >= _SMALL_SHARE * (num_small + num_main) or main == END):
                slot, small = small, self._small.after(small)
                num_small -= 1
                if self._is_held[slot]:
                    self._park(slot, _SMALL)
                elif self._num_uses[slot] >= _NUM_USES_TO_STAY:
                    self._small.unlink(slot)
                    self._enter_main(slot)
                    num_main += 1
                    main = slot if main == END else main
                else:
                    yield slot
                continue
            slot, main = main, self._main.after(main)
            if self._is_held[slot]:
                self._park(slot, _MAIN)
                num_main -= 1
            elif self._num_uses[slot]:
                self._num_uses[slot] -= 1
                self._main.move_to_end(slot)
                main = slot if main == END else main
            else:
                num_main -= 1
                yield slot

    def _enter_main(self, slot: int) -> None:
        self._states[slot] = _MAIN
        self._main.append(slot)

    def _park(self, slot: int, state: int) -> None:
        self._take_out(slot, state)
        self._states[slot] = _PARKED
        self._num_parked += 1

    def _take_out(self, slot: int, state: int) -> None:
        if state == _SMALL:
            self._small.unlink(slot)
        elif state == _MAIN:
            self._main.unlink(slot)
        else:
            self._num_parked -= 1

    def _state(self, slot: int) -> int:
        return self._states[slot] if 0 <= slot < len(self._states) else _UNKNOWN
