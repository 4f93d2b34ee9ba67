"""The mixed list of block ids: what parses to what, what does not parse, and the compact form back."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.block_ranges import (
    expand_block_ids,
    expand_ids,
    format_block_ids,
    list_runs,
    parse_block_ids,
    parse_ids,
)
from lmcache.errors import BlockRangeError

IDS = st.lists(st.integers(0, 40) | st.integers(0, 10**30), max_size=30)


def ids_of(text: str) -> list[int]:
    return [block_id for ids in parse_block_ids(text) for block_id in ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,[2,5],8", [0, 2, 3, 4, 5, 8]),
        ("7", [7]),
        ("3,3,1", [3, 3, 1]),
        ("[4,4]", [4]),
        (" 1 ,\t[ 2 , 3 ]\n", [1, 2, 3]),
        ("1 2", [12]),
        (",", []),
        ("", []),
        (",0,,1,", [0, 1]),
        ("-1,2", [-1, 2]),
        ("007", [7]),
    ],
)
def test_what_parses(text: str, expected: list[int]) -> None:
    assert ids_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a", "1.5", "1e3", "0x1", "+1", "1_0", "\uff11", "1-2", "1;2", "[2,5", "2,5]", "[5,2]", "[2]", "[]", "[,]",
        "[2,5,7]", "[[2,5],8]", "[-2,5]", "[2,-5]", "[2,5][6,7]", "1[2,3]", "[2,3]4", "9" * 5000, f"[0,{'9' * 5000}]",
        "None", "\x00", "1,\ud800",
    ],
)  # fmt: skip
def test_what_does_not(text: str) -> None:
    with pytest.raises(BlockRangeError, match=r"^Invalid block_ids format$"):
        parse_block_ids(text)


@given(st.text(alphabet="0129[],- a\t", max_size=30))
def test_any_text_parses_or_is_refused_in_one_way(text: str) -> None:
    try:
        ranges = parse_block_ids(text)
    except BlockRangeError:
        return
    assert all(ids.stop > ids.start for ids in ranges)


@given(IDS)
def test_the_compact_form_parses_back(block_ids: list[int]) -> None:
    assert ids_of(format_block_ids(block_ids)) == block_ids


@given(IDS)
def test_the_compact_form_has_a_range_for_each_run_of_three_and_for_no_shorter_one(block_ids: list[int]) -> None:
    ranges = parse_block_ids(format_block_ids(block_ids))
    lengths = [ids.stop - ids.start for ids in ranges]
    assert 2 not in lengths
    for one, two, three in zip(ranges, ranges[1:], ranges[2:], strict=False):
        assert not (one.stop == two.start and two.stop == three.start), "a run in three pieces"
    for one, two in itertools.pairwise(ranges):
        assert one.stop != two.start or max(one.stop - one.start, two.stop - two.start) == 1, "a run cut in two"


@pytest.mark.parametrize(
    ("block_ids", "expected"),
    [
        ([0, 2, 3, 4, 5, 8], "0,[2,5],8"),
        ([0, 1, 2, 3], "[0,3]"),
        ([0, 1], "0,1"),
        ([3, 2, 1], "3,2,1"),
        ([1, 1, 2, 3], "1,[1,3]"),
        ([], ""),
        ([-3, -2, -1, 0, 1], "-3,-2,-1,0,1"),
    ],
)
def test_compact_form(block_ids: list[int], expected: str) -> None:
    assert format_block_ids(block_ids) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-1", "block id -1 is outside the cache of 10 blocks"),
        ("0,10", "block id 10 is outside the cache of 10 blocks"),
        ("[3,1000000000000]", "block id 1000000000000 is outside the cache of 10 blocks"),
        (f"[0,{'9' * 4000}]", "4000 characters"),
        ("[0,9],[0,9],0", "too many block ids in a single request .limit=20."),
    ],
)
def test_ids_that_a_cache_does_not_have(text: str, reason: str) -> None:
    with pytest.raises(BlockRangeError, match=reason):
        expand_block_ids(parse_block_ids(text), 10, 20)


def test_duplicates_are_kept_in_their_order() -> None:
    assert expand_block_ids(parse_block_ids("9,[0,2],0,9"), 10, 20) == [9, 0, 1, 2, 0, 9]


def test_a_short_text_takes_no_memory() -> None:
    ranges = parse_block_ids(f"[0,{10**4000}]")
    assert sys.getsizeof(ranges[0]) < 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0,x,1", "'x' is neither a number nor a range"),
        ("0,[a,b],1", "'[a,b]' is neither a number nor a range"),
        ("[0,3]x,1", "'[0,3]x' is neither a number nor a range"),
        ("1,[2", "'[2' is neither a number nor a range"),
        ("[5,2]", "[5,2] ends before it starts"),
        ("9" * 5000, "99999999999999999999... (5000 characters) is too long a number"),
    ],
)
def test_item_at_fault_is_named(text: str, why: str) -> None:
    with pytest.raises(BlockRangeError) as caught:
        parse_ids(text)
    assert str(caught.value) == why


@given(st.lists(st.integers(0, 12), max_size=20))
def test_list_of_runs_is_the_compact_form_as_a_list(ids: list[int]) -> None:
    assert str(list_runs(ids)).replace(" ", "") == f"[{format_block_ids(ids)}]"


def test_too_many_of_anything_name_it() -> None:
    with pytest.raises(BlockRangeError, match=r"too many slots in a single request \(limit=3\)"):
        expand_ids(parse_ids("[0,99999999999999]"), 3, "slots")
