"""Which slots of one device are free, used, or still read. Pure; knows no bytes and no keys."""

from __future__ import annotations

from lmcache.errors import IntegrityError

# In front of every slot, so that a header of usual length takes nothing from the slot's payload.
HEADER_ROOM_BYTES = 4096


def stride_of(slot_bytes: int) -> int:
    """From the start of one slot to that of the next."""
    return slot_bytes + HEADER_ROOM_BYTES


def num_slots_of(size_bytes: int, slot_bytes: int) -> int:
    return size_bytes // stride_of(slot_bytes)


class Slots:
    """One owner, not thread-safe. A slot that is given back while it is pinned is free when its last pin ends.

    The lowest free slot is taken first, so that a device can shrink without moving much.
    """

    def __init__(self, num_slots: int) -> None:
        self._is_used = bytearray(num_slots)
        self._search_from = 0
        self._pins: dict[int, int] = {}
        self._ending: set[int] = set()
        self.num_used = 0

    def __len__(self) -> int:
        return len(self._is_used)

    @property
    def num_free(self) -> int:
        return len(self._is_used) - self.num_used

    @property
    def num_pinned(self) -> int:
        return len(self._pins)

    @property
    def fill(self) -> float:
        return self.num_used / len(self._is_used)

    def take(self, limit: int | None = None) -> int:
        """The lowest free slot, below `limit` if given; -1: there is none."""
        slot = self._is_used.find(0, self._search_from, limit)
        if slot >= 0:
            self.use(slot)
            self._search_from = slot + 1
        return slot

    def use(self, slot: int) -> None:
        """Take this very slot."""
        if self._is_used[slot]:
            raise IntegrityError(f"slot {slot} is used twice")
        self._is_used[slot] = 1
        self.num_used += 1

    def give_back(self, slot: int) -> None:
        if not self._is_used[slot] or slot in self._ending:
            raise IntegrityError(f"slot {slot} is given back twice")
        if slot in self._pins:
            self._ending.add(slot)
        else:
            self._free(slot)

    def _free(self, slot: int) -> None:
        self._is_used[slot] = 0
        self.num_used -= 1
        self._search_from = min(self._search_from, slot)

    def pin(self, slot: int) -> None:
        self._pins[slot] = self._pins.get(slot, 0) + 1

    def unpin(self, slot: int) -> None:
        self._pins[slot] -= 1
        if not self._pins[slot]:
            del self._pins[slot]
            if slot in self._ending:
                self._ending.remove(slot)
                self._free(slot)

    def num_used_from(self, start: int) -> int:
        """Used slots that are not below `start`."""
        return self._is_used.count(1, start)

    def resize(self, num_slots: int) -> None:
        """Nothing may be used in what is cut off."""
        if self.num_used_from(num_slots):
            raise IntegrityError("slots in use cannot be cut off")
        del self._is_used[num_slots:]
        self._is_used.extend(bytes(num_slots - len(self._is_used)))
        self._search_from = min(self._search_from, num_slots)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless counts, pins and slots agree."""
        if self._is_used.count(1) != self.num_used or not self._ending <= set(self._pins):
            raise IntegrityError("used slots, pins and counts do not add up")
        if self._is_used.find(0, 0, self._search_from) >= 0:
            raise IntegrityError("a free slot lies where none is looked for")
