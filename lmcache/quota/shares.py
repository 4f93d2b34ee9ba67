"""One limit over several tiers: how much each may keep. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def level_of(limit_bytes: int, held_bytes: Sequence[int]) -> int:
    """The most that any one tier may keep, so that together they keep at most the limit.

    Tiers that hold less keep what they hold; those that hold more give up the rest: whoever
    holds most gives first. At or below the limit, that is whatever they hold.
    """
    left = limit_bytes
    held = sorted(held_bytes)
    for position, part in enumerate(held):
        share = left // (len(held) - position)
        if part > share:
            return share
        left -= part
    return max(held, default=0)
