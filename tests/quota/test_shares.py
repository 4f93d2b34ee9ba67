"""One limit over several tiers: together at most the limit, and not a byte less than can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.quota.shares import level_of


@pytest.mark.parametrize(
    ("limit", "held", "level"),
    [
        (6, [8, 4], 3),
        (6, [3, 4], 3),
        (10, [8, 1], 8),
        (5, [8, 1], 4),
        (0, [8, 1], 0),
        (9, [], 0),
        (7, [7], 7),
        (3, [7], 3),
    ],
)
def test_who_holds_most_gives_first(limit: int, held: list[int], level: int) -> None:
    assert level_of(limit, held) == level


@given(st.integers(0, 1000), st.lists(st.integers(0, 500), max_size=5))
def test_together_they_keep_at_most_the_limit_and_lose_no_more_than_they_must(limit: int, held: list[int]) -> None:
    level = level_of(limit, held)
    kept = [min(part, level) for part in held]
    assert sum(kept) <= max(limit, 0)
    assert sum(held) - sum(kept) <= max(0, sum(held) - limit) + len(held) - 1 if held else True
    if sum(held) <= limit:
        assert kept == held


@given(st.integers(0, 1000), st.lists(st.integers(0, 500), min_size=2, max_size=5), st.data())
def test_tiers_may_be_brought_back_one_after_another(limit: int, held: list[int], data: st.DataObject) -> None:
    """Each looks at what all hold when its turn comes; the order does not matter."""
    expected = [min(part, level_of(limit, held)) for part in held]
    now = list(held)
    for position in data.draw(st.permutations(range(len(held)))):
        now[position] = min(now[position], level_of(limit, now))
    assert sum(now) <= limit
    assert all(one >= other for one, other in zip(now, expected, strict=True))
