"""What L1 tells of itself: counts for a status, tenants of places, what came and went. Works on L1's tables, under
the manager's mutex, and changes nothing but the logs it empties."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from lmcache.l1.state import L1State
from lmcache.l1.values import Place
from lmcache.memory.records import SlotState, state_of

T = TypeVar("T")


def report(state: L1State) -> dict[str, int | float]:
    slots, allocator = state.slots, state.slots.allocator
    return {
        "total_object_count": slots.counts[SlotState.READY] + slots.counts[SlotState.WRITING],
        "write_locked_count": slots.counts[SlotState.WRITING],
        "read_locked_count": len(state.lock_counts),
        "temporary_count": len(state.temporary),
        "quarantined_count": slots.counts[SlotState.QUARANTINED],
        "quarantined_bytes": slots.quarantined_bytes,
        "memory_used_bytes": allocator.used_bytes,
        "memory_total_bytes": allocator.capacity_bytes,
        "memory_usage_ratio": allocator.used_bytes / max(1, allocator.capacity_bytes),
    }


def salts_of(state: L1State, places: Sequence[Place]) -> list[str]:
    """The tenant of each slot in use, empty where the slot is not what it was."""
    return [_salt_of(state, place) for place in places]


def _salt_of(state: L1State, place: Place) -> str:
    in_use = (SlotState.WRITING, SlotState.READY)
    if not state.has_word(place.slot, place.slot_word) or state_of(place.slot_word) not in in_use:
        return ""
    return state.namespace_of(state.slots.records.read(place.slot)).key.cache_salt


def take_all(log: deque[T]) -> list[T]:
    """What was logged since the last call, oldest first."""
    taken = list(log)
    log.clear()
    return taken
