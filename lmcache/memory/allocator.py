"""Best-fit allocator over a range of bytes, with coalescing. Pure; one owner, not thread-safe.

It hands out offsets, never touches memory, and only within what `grow` has given it.
"""

from __future__ import annotations

from sortedcontainers import SortedList

from lmcache.core.sizes import align_up
from lmcache.errors import IntegrityError

ALIGN_BYTES = 4096


class Allocator:
    """Offsets and lengths are multiples of `align_bytes`; a request is rounded up."""

    def __init__(self, align_bytes: int = ALIGN_BYTES) -> None:
        self._align_bytes = align_bytes
        self._free: SortedList = SortedList()  # (length, offset), for the best fit
        self._length_at: dict[int, int] = {}  # offset -> length of the free extent that starts there
        self._start_of_end: dict[int, int] = {}  # end -> offset of the free extent that ends there
        self.capacity_bytes = 0
        self.free_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self.capacity_bytes - self.free_bytes

    @property
    def largest_free_bytes(self) -> int:
        return self._free[-1][0] if self._free else 0

    def rounded(self, length: int) -> int:
        return align_up(length, self._align_bytes)

    def grow(self, length: int) -> None:
        """Take `length` more bytes at the end into use."""
        self.capacity_bytes += length
        self.free(self.capacity_bytes - length, length)

    def allocate(self, length: int) -> int | None:
        """Offset of the smallest free extent that holds `length` bytes; None if there is none."""
        if length <= 0:
            raise IntegrityError(f"an allocation has at least one byte (got {length})")
        length = self.rounded(length)
        position = self._free.bisect_left((length, 0))
        if position == len(self._free):
            return None
        extent: tuple[int, int] = self._free[position]
        found_length, offset = extent
        del self._free[position]
        del self._length_at[offset]
        del self._start_of_end[offset + found_length]
        if found_length > length:
            self._insert(offset + length, found_length - length)
        self.free_bytes -= length
        return offset

    def rebuild(self, gaps: list[tuple[int, int]]) -> None:
        """Start over with exactly these free extents (offset, length), ascending and apart (recovery)."""
        self._free = SortedList((length, offset) for offset, length in gaps)
        self._length_at = dict(gaps)
        self._start_of_end = {offset + length: offset for offset, length in gaps}
        self.free_bytes = sum(length for _, length in gaps)
        self.check_integrity()

    def free(self, offset: int, length: int) -> None:
        """Give a range back; it joins its free neighbours. Freeing a free byte is an error."""
        length = self.rounded(length)
        if offset in self._length_at:
            raise IntegrityError(f"offset {offset} is free already")
        start, total = offset, length
        before = self._start_of_end.get(offset)
        if before is not None:
            before_length = self._length_at[before]
            self._remove(before, before_length)
            start, total = before, total + before_length
        after_length = self._length_at.get(offset + length)
        if after_length is not None:
            self._remove(offset + length, after_length)
            total += after_length
        self._insert(start, total)
        self.free_bytes += length

    def _insert(self, offset: int, length: int) -> None:
        self._free.add((length, offset))
        self._length_at[offset] = length
        self._start_of_end[offset + length] = offset

    def _remove(self, offset: int, length: int) -> None:
        self._free.remove((length, offset))
        del self._length_at[offset]
        del self._start_of_end[offset + length]

    def check_sample(self, num_extents_max: int = 64) -> None:
        """`check_integrity` for totals and for so many extents, spread evenly over the sizes: bounded work."""
        num_extents = len(self._free)
        if not num_extents == len(self._length_at) == len(self._start_of_end):
            raise IntegrityError("the free lists disagree")
        if not 0 <= self.free_bytes <= self.capacity_bytes or bool(num_extents) != bool(self.free_bytes):
            raise IntegrityError("free bytes do not add up")
        step = max(1, num_extents // num_extents_max)
        for length, offset in self._free[::step]:
            self._check_extent(offset, length)

    def _check_extent(self, offset: int, length: int) -> None:
        if length <= 0 or offset % self._align_bytes or length % self._align_bytes:
            raise IntegrityError(f"free extent {offset}+{length} is empty or not aligned")
        if self._length_at.get(offset) != length or self._start_of_end.get(offset + length) != offset:
            raise IntegrityError(f"free extent {offset}+{length} is not listed by its ends")
        if offset < 0 or offset + length > self.capacity_bytes or offset + length in self._length_at:
            raise IntegrityError(f"free extent {offset}+{length} overlaps or touches its neighbour")

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the extents are disjoint, joined, aligned and add up."""
        extents = sorted((offset, length) for length, offset in self._free)
        if dict(extents) != self._length_at or len(self._start_of_end) != len(extents):
            raise IntegrityError("the free lists disagree")
        position = -1
        for offset, length in extents:
            if length <= 0 or offset % self._align_bytes or length % self._align_bytes:
                raise IntegrityError(f"free extent {offset}+{length} is empty or not aligned")
            if offset <= position:
                raise IntegrityError(f"free extent {offset}+{length} overlaps or touches its neighbour")
            if self._start_of_end.get(offset + length) != offset:
                raise IntegrityError(f"free extent {offset}+{length} is not listed by its end")
            position = offset + length
        if position > self.capacity_bytes or sum(length for _, length in extents) != self.free_bytes:
            raise IntegrityError("free bytes do not add up")
