"""Doubly linked lists over slots, in columns of machine integers: eight bytes a slot, not an object each.

What a million objects cost in memory and in pauses of the garbage collector decides this
form. The lists of one `SlotLinks` share its columns, so a slot is in at most one of them;
who owns them remembers in which.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from lmcache.errors import IntegrityError

END = -1
# Columns grow by an eighth and this many slots at least, so that growing stays cheap over all.
_GROWTH_SLOTS = 1024


def grow(num_slots: int, *columns: array[int]) -> None:
    """Make columns reach `num_slots`, with zeros."""
    for column in columns:
        missing = num_slots - len(column)
        if missing > 0:
            column.frombytes(bytes(column.itemsize * max(missing, len(column) >> 3, _GROWTH_SLOTS)))


class SlotLinks:
    """The columns that lists share: who comes after a slot, and who before."""

    def __init__(self) -> None:
        self.next = array("i")
        self.prev = array("i")

    def reach(self, slot: int) -> None:
        if slot >= len(self.next):
            grow(slot + 1, self.next, self.prev)


class SlotList:
    """An order over slots, the first to go first. The caller knows which slots are in it."""

    __slots__ = ("_len", "_next", "_prev", "first", "last")

    def __init__(self, links: SlotLinks) -> None:
        self._next = links.next
        self._prev = links.prev
        self.first = END
        self.last = END
        self._len = 0

    def append(self, slot: int) -> None:
        last = self.last
        self._prev[slot] = last
        self._next[slot] = END
        if last < 0:
            self.first = slot
        else:
            self._next[last] = slot
        self.last = slot
        self._len += 1

    def unlink(self, slot: int) -> None:
        after, before = self._next[slot], self._prev[slot]
        if before < 0:
            self.first = after
        else:
            self._next[before] = after
        if after < 0:
            self.last = before
        else:
            self._prev[after] = before
        self._len -= 1

    def move_to_end(self, slot: int) -> None:
        if slot != self.last:
            self.unlink(slot)
            self.append(slot)

    def after(self, slot: int) -> int:
        return self._next[slot]

    def __iter__(self) -> Iterator[int]:
        """From the first on; the slot just given may be unlinked before going on."""
        slot = self.first
        while slot >= 0:
            after = self._next[slot]
            yield slot
            slot = after

    def __len__(self) -> int:
        return self._len


def check_unknown(slot: int, is_known: int) -> None:
    """Raise IntegrityError for a slot that is stored a second time, or is none."""
    if is_known or slot < 0:
        raise IntegrityError(f"slot {slot} is tracked already" if is_known else f"{slot} is no slot")


def refuse_tenant(name: str, tenant: str | None) -> None:
    """Raise IntegrityError for victims of one tenant, in a policy that knows no tenants."""
    if tenant is not None:
        raise IntegrityError(f"the eviction policy {name} does not tell tenants apart")
