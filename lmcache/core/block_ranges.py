"""Lists of engine block ids, or slots, as operators write them, `0,[2,5],8`, and back. Pure.

A range stays a range until somebody asks for its ids, so that a short text cannot ask for a lot of memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from lmcache.errors import BlockRangeError

_ITEM = re.compile(r"\[([0-9]+),([0-9]+)\]|(-?[0-9]+)|(?=,|$)")
_SPACE = re.compile(r"\s+")
_MALFORMED = "Invalid block_ids format"
# Shorter runs are written id by id.
_RUN_IDS_MIN = 3


def parse_block_ids(text: str) -> list[range]:
    """As `parse_ids`, with the documented error text."""
    try:
        return parse_ids(text)
    except BlockRangeError:
        raise BlockRangeError(_MALFORMED) from None


def parse_ids(text: str) -> list[range]:
    """The ids of a mixed list, in its order; spaces and empty items do not count. Raises BlockRangeError, which
    names the item at fault."""
    text = _SPACE.sub("", text)
    found: list[range] = []
    position = 0
    while position <= len(text):
        item = _ITEM.match(text, position)
        if item is None or text[item.end() : item.end() + 1] not in ("", ","):
            raise BlockRangeError(f"{_shown(_item_at(text, position))!r} is neither a number nor a range")
        if item.end() > item.start():
            found.append(_range_of(item))
        position = item.end() + 1
    return found


def _range_of(item: re.Match[str]) -> range:
    first, last, single = item.groups()
    try:
        start, end = (int(single), int(single)) if single is not None else (int(first), int(last))
    except ValueError:  # more digits than the interpreter converts
        raise BlockRangeError(f"{_shown(item.group())} is too long a number") from None
    if end < start:
        raise BlockRangeError(f"{_shown(item.group())} ends before it starts")
    return range(start, end + 1)


def _item_at(text: str, position: int) -> str:
    """Up to the comma behind it; a range has one inside."""
    inside = text.find("]", position) if text[position : position + 1] == "[" else position
    end = text.find(",", max(inside, position))
    return text[position:] if end < 0 else text[position:end]


def expand_block_ids(ranges: Iterable[range], num_blocks: int, num_ids_max: int) -> list[int]:
    """The ids one by one. Raises BlockRangeError, before it takes any memory, for ids that a cache of
    `num_blocks` does not have and for more than `num_ids_max` of them."""
    ranges = list(ranges)
    for ids in ranges:
        outside = ids.start if ids.start < 0 else ids.stop - 1
        if not 0 <= outside < num_blocks:
            raise BlockRangeError(f"block id {_shown(outside)} is outside the cache of {num_blocks} blocks")
    return expand_ids(ranges, num_ids_max, "block ids")


def expand_ids(ranges: Iterable[range], num_ids_max: int, what: str) -> list[int]:
    """The ids one by one. Raises BlockRangeError, before it takes any memory, for more than `num_ids_max`."""
    ranges = list(ranges)
    if sum(ids.stop - ids.start for ids in ranges) > num_ids_max:
        raise BlockRangeError(f"too many {what} in a single request (limit={num_ids_max})")
    return [number for ids in ranges for number in ids]


def format_block_ids(block_ids: Sequence[int]) -> str:
    """The compact form: `[first,last]` for each run of three or more that ascends by one; the order is kept."""
    return ",".join(item for run in _runs(block_ids) for item in _items(run))


def list_runs(ids: Sequence[int]) -> list[int | list[int]]:
    """The same as a list: `[first, last]` for each such run, and the other ids."""
    found: list[int | list[int]] = []
    for run in _runs(ids):
        if _is_range(run):
            found.append([run[0], run[-1]])
        else:
            found += run
    return found


def _runs(block_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    start = 0
    for end in range(1, len(block_ids) + 1):
        if end == len(block_ids) or block_ids[end] != block_ids[end - 1] + 1:
            yield block_ids[start:end]
            start = end


def _items(run: Sequence[int]) -> list[str]:
    if _is_range(run):
        return [f"[{run[0]},{run[-1]}]"]
    return [str(block_id) for block_id in run]


def _is_range(run: Sequence[int]) -> bool:
    """A range is written with digits only."""
    return len(run) >= _RUN_IDS_MIN and run[0] >= 0


def _shown(item: int | str) -> str:
    """What is fit for an error text: nobody reads a hundred digits."""
    text = str(item)
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"
