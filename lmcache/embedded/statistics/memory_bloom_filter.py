"""Counts unique chunks by a Bloom filter: they are kept nowhere, and a small share of them is taken for known."""

from __future__ import annotations

from lmcache.embedded.statistics.bloom import BloomFilter

_MIB = 1 << 20


class MemoryBloomFilter:
    """A `CountingStrategy`. A chunk of two tenants is two chunks, since neither is given the other's."""

    name = "bloom_filter"
    is_lasting = False

    def __init__(self, num_expected: int, false_positive_rate: float) -> None:
        self._filter = BloomFilter(num_expected, false_positive_rate)

    def count(self, lookup_id: str, at_s: float, cache_salt: str, digests: tuple[bytes, ...]) -> int:
        salt = cache_salt.encode()
        return sum(self._filter.add(digest + salt) for digest in digests)

    def clear(self) -> None:
        self._filter.clear()

    def figures(self) -> dict[str, object]:
        return {
            "size_mb": self._filter.size_bytes / _MIB,
            "hash_count": self._filter.num_hashes,
            "item_count": self._filter.num_items,
            "bits_set": self._filter.num_bits_set,
            "fill_rate": self._filter.fill_rate,
            "expected_elements": self._filter.num_expected,
            "false_positive_rate": self._filter.false_positive_rate,
        }

    def close(self) -> None:
        self._filter.clear()
