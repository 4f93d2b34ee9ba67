"""The Bloom filter: the documented vector, never a seen item taken for new, about the promised share of the reverse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmcache.embedded.statistics.bloom import BloomFilter

ITEM = (12345).to_bytes(2, "big")


def test_documented_vector() -> None:
    bloom = BloomFilter(1000, 0.01)
    assert (bloom.num_bits, bloom.num_hashes) == (9585, 6)
    assert list(bloom.positions(ITEM)) == [1197, 3899, 3408, 6103, 4373, 165]


def test_default_size_is_about_24_mb() -> None:
    assert 23e6 < BloomFilter(20_000_000, 0.01).size_bytes < 25e6


def test_an_item_is_new_once() -> None:
    bloom = BloomFilter(1000, 0.01)
    assert ITEM not in bloom
    assert bloom.add(ITEM)
    assert ITEM in bloom
    assert not bloom.add(ITEM)
    assert (bloom.num_items, bloom.num_bits_set) == (1, 6)
    assert bloom.fill_rate == 6 / 9585


@given(st.lists(st.binary(max_size=40), max_size=200), st.integers(1, 300), st.floats(1e-9, 0.5))
def test_no_seen_item_is_new(items: list[bytes], num_expected: int, rate: float) -> None:
    bloom = BloomFilter(num_expected, rate)
    for item in items:
        is_known = item in bloom
        assert bloom.add(item) != is_known
        assert item in bloom
    assert not any(bloom.add(item) for item in items)
    assert bloom.num_items <= len(set(items))
    assert bloom.num_bits_set <= min(bloom.num_bits, bloom.num_items * bloom.num_hashes)


def test_false_positives_are_about_as_many_as_promised() -> None:
    bloom = BloomFilter(4000, 0.02)
    for number in range(4000):
        bloom.add(b"seen %d" % number)
    num_wrong = sum(b"never %d" % number in bloom for number in range(20_000))
    assert 0.01 < num_wrong / 20_000 < 0.03
    # Half of the bits, where size and number of hashes fit each other.
    assert 0.4 < bloom.fill_rate < 0.6


def test_clear_forgets_all() -> None:
    bloom = BloomFilter(10, 0.1)
    bloom.add(ITEM)
    bloom.clear()
    assert ITEM not in bloom
    assert (bloom.num_items, bloom.num_bits_set) == (0, 0)
    assert bloom.add(ITEM)


def test_positions_reach_every_part_of_a_huge_filter() -> None:
    bloom = BloomFilter(10_000_000_000, 0.01)
    found = [position for number in range(200) for position in bloom.positions(b"%d" % number)]
    assert max(found) > 1 << 33
    assert all(position < bloom.num_bits for position in found)
