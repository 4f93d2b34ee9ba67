"""A Bloom filter: which items were seen, in a few bits each. Knows no chunk; does no locking."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256

# A position is made of so many leading bytes of a hash, unless there are more bits than they can tell apart.
_POSITION_BYTES = 4
_LARGE_POSITION_BYTES = 8
_INDEX_BYTES = 4


class BloomFilter:
    """Sized for `num_expected` items, of which a share of about `false_positive_rate` is wrongly taken for seen.

    Its memory is asked for with the first item, zeroed, so that the kernel gives a page when a bit of it is set.
    """

    def __init__(self, num_expected: int, false_positive_rate: float) -> None:
        self.num_expected = num_expected
        self.false_positive_rate = false_positive_rate
        self.num_bits = max(1, int(-num_expected * math.log(false_positive_rate) / math.log(2) ** 2))
        self.num_hashes = max(1, int(self.num_bits / num_expected * math.log(2)))
        self.num_items = 0
        self.num_bits_set = 0
        is_large = self.num_bits > 1 << 8 * _POSITION_BYTES
        self._position_bytes = _LARGE_POSITION_BYTES if is_large else _POSITION_BYTES
        self._bits: bytearray | None = None

    @property
    def size_bytes(self) -> int:
        return -(-self.num_bits // 8)

    @property
    def fill_rate(self) -> float:
        return self.num_bits_set / self.num_bits

    def positions(self, item: bytes) -> Iterator[int]:
        for index in range(self.num_hashes):
            digest = sha256(item + index.to_bytes(_INDEX_BYTES, "big")).digest()
            yield int.from_bytes(digest[: self._position_bytes], "big") % self.num_bits

    def add(self, item: bytes) -> bool:
        """Whether it is new. Raises MemoryError where there is no room for the bits."""
        if self._bits is None:
            self._bits = bytearray(self.size_bytes)
        bits, num_set = self._bits, 0
        for position in self.positions(item):
            mask = 1 << (position & 7)
            if not bits[position >> 3] & mask:
                bits[position >> 3] |= mask
                num_set += 1
        self.num_bits_set += num_set
        self.num_items += num_set > 0
        return num_set > 0

    def __contains__(self, item: bytes) -> bool:
        bits = self._bits
        return bits is not None and all(bits[position >> 3] >> (position & 7) & 1 for position in self.positions(item))

    def clear(self) -> None:
        """Forget all items, and give the memory back."""
        self._bits = None
        self.num_items = self.num_bits_set = 0
