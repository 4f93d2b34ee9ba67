"""Digests to row numbers in some 45 bytes an entry: a hash table in flat arrays.

A dict of `bytes` would cost three times as much, and a disk tier counts its objects in
millions. Digests are uniformly random, so their own bytes are the hash. Open addressing
with linear probing; deleting moves later entries back, so there are no tombstones.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from lmcache.errors import IntegrityError

DIGEST_BYTES = 32
_EMPTY = -1
_BUCKETS_MIN = 64
_SPACE_MULTIPLIER = 0x9E3779B97F4A7C15  # spreads the spaces, which are small numbers


class DigestTable:
    """One owner, not thread-safe. A digest is unique within its space; spaces are small integers."""

    def __init__(self) -> None:
        self._buckets = array("i", [_EMPTY]) * _BUCKETS_MIN
        self._mask = _BUCKETS_MIN - 1
        self._digests = bytearray()
        self._spaces = array("i")
        self._free_rows = array("i")
        self._num_used = 0

    def __len__(self) -> int:
        return self._num_used

    @property
    def num_rows(self) -> int:
        """One more than the largest row ever given out."""
        return len(self._spaces)

    def find(self, space: int, digest: bytes) -> int:
        """The row of a digest, or -1."""
        buckets, mask, spaces, digests = self._buckets, self._mask, self._spaces, self._digests
        bucket = self._home(space, digest)
        while (row := buckets[bucket]) != _EMPTY:
            start = row * DIGEST_BYTES
            if spaces[row] == space and digests[start : start + DIGEST_BYTES] == digest:
                return row
            bucket = (bucket + 1) & mask
        return -1

    def add(self, space: int, digest: bytes) -> int:
        """A row for a digest that is not in the table."""
        if 5 * (self._num_used + 1) > 3 * len(self._buckets):
            self._grow()
        if self._free_rows:
            row = self._free_rows.pop()
            self._spaces[row] = space
            self._digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES] = digest
        else:
            row = len(self._spaces)
            self._spaces.append(space)
            self._digests += digest
        self._place(row, self._home(space, digest))
        self._num_used += 1
        return row

    def fill(self, spaces: array[int], digests: bytearray) -> None:
        """The rows of an empty table, all at once: row n is the n-th space and digest. No two are equal."""
        self._spaces, self._digests, self._num_used = spaces, digests, len(spaces)
        num_buckets = _BUCKETS_MIN
        while 5 * len(spaces) > 3 * num_buckets:
            num_buckets *= 2
        self._spread(num_buckets)

    def _spread(self, num_buckets: int) -> None:
        """Put every used row into that many empty buckets.

        In the order of their homes, each row lies at its home or right behind the one before; that
        is a running maximum. Those that would lie behind the end go on at the start, one by one.
        """
        self._buckets, self._mask = array("i", [_EMPTY]) * num_buckets, num_buckets - 1
        spaces = np.frombuffer(self._spaces, np.int32) if self._spaces else np.empty(0, np.int32)
        rows = np.flatnonzero(spaces != _EMPTY)
        if not len(rows):
            return
        homes = spaces[rows].astype(np.uint64) * np.uint64(_SPACE_MULTIPLIER)
        homes += np.frombuffer(self._digests, "<u8")[:: DIGEST_BYTES // 8][rows]
        homes &= np.uint64(self._mask)
        order = np.argsort(homes)
        rows, homes, steps = rows[order].astype(np.int32), homes[order].astype(np.int64), np.arange(len(rows))
        places = np.maximum.accumulate(homes - steps) + steps
        num_inside = int(np.searchsorted(places, num_buckets))
        np.frombuffer(self._buckets, np.int32)[places[:num_inside]] = rows[:num_inside]
        for row, home in zip(rows[num_inside:].tolist(), homes[num_inside:].tolist(), strict=True):
            self._place(row, home)

    def rows_starting_with(self, first_byte: int) -> list[int]:
        """The rows whose digest starts with that byte."""
        if not self._num_used:
            return []
        starts = np.frombuffer(self._digests, np.uint8)[::DIGEST_BYTES]
        is_used = np.frombuffer(self._spaces, np.int32) != _EMPTY
        found: list[int] = np.flatnonzero((starts == first_byte) & is_used).tolist()
        return found

    def columns(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Spaces of some rows, and the numbers that the first eight bytes of their digests are."""
        spaces = np.frombuffer(self._spaces, np.int32)[rows]
        starts = np.frombuffer(self._digests, "<u8")[:: DIGEST_BYTES // 8][rows]
        return spaces.tolist(), starts.tolist()

    def remove(self, row: int) -> None:
        """Free a row; its number will be given out again."""
        bucket = self._home(self._spaces[row], self.digest(row))
        while self._buckets[bucket] != row:
            bucket = (bucket + 1) & self._mask
        self._close_gap(bucket)
        self._spaces[row] = _EMPTY
        self._free_rows.append(row)
        self._num_used -= 1

    def is_used(self, row: int) -> bool:
        return 0 <= row < len(self._spaces) and self._spaces[row] != _EMPTY

    def space(self, row: int) -> int:
        return self._spaces[row]

    def digest(self, row: int) -> bytes:
        return bytes(self._digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES])

    def _home(self, space: int, digest: bytes | bytearray) -> int:
        return (int.from_bytes(digest[:8], "little") + space * _SPACE_MULTIPLIER) & self._mask

    def _place(self, row: int, bucket: int) -> None:
        while self._buckets[bucket] != _EMPTY:
            bucket = (bucket + 1) & self._mask
        self._buckets[bucket] = row

    def _close_gap(self, gap: int) -> None:
        """Empty a bucket; entries behind it that hash before it move up, so that probing still finds them."""
        buckets, mask = self._buckets, self._mask
        bucket = gap
        while True:
            buckets[gap] = _EMPTY
            while True:
                bucket = (bucket + 1) & mask
                row = buckets[bucket]
                if row == _EMPTY:
                    return
                home = self._home(self._spaces[row], self._digests[row * DIGEST_BYTES : row * DIGEST_BYTES + 8])
                if (bucket - home) & mask >= (bucket - gap) & mask:
                    break
            buckets[gap] = row
            gap = bucket

    def _grow(self) -> None:
        # All at once: row by row, a million of them would keep whoever waits for the owner for a second.
        self._spread(2 * len(self._buckets))

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every used row is found, once."""
        rows = [row for row in range(len(self._spaces)) if self._spaces[row] != _EMPTY]
        in_buckets = sorted(row for row in self._buckets if row != _EMPTY)
        if rows != in_buckets or len(rows) != self._num_used or len(rows) + len(self._free_rows) != len(self._spaces):
            raise IntegrityError("rows and buckets of the digest table do not add up")
        if any(self.find(self._spaces[row], self.digest(row)) != row for row in rows):
            raise IntegrityError("a row of the digest table is not found by its digest")
