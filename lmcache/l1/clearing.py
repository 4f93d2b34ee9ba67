"""Clearing L1, a bounded number of slots at a time. Works on L1's tables, under the manager's mutex.

Goes by slot number: an object never changes its slot, so whoever visits every slot once has
met everything that was there when he began, whatever others store and remove meanwhile.
"""

from __future__ import annotations

from lmcache.l1.state import L1State
from lmcache.memory.records import SlotState, state_of

_RECORDS_PER_SLICE = 16_384
# Removing one object takes some 10 microseconds.
_OBJECTS_PER_SLICE = 512


def clear_slice(state: L1State, first_slot: int, force: bool) -> tuple[int, int]:
    """Remove objects from `first_slot` on (without `force`, those nobody has locked), and with `force`
    hide writes under way. How many objects went, and the slot to go on with."""
    records = state.slots.records
    next_slot = min(first_slot + _RECORDS_PER_SLICE, records.num_records)
    found = records.used_between(first_slot, next_slot)
    if len(found) > _OBJECTS_PER_SLICE:
        next_slot = found[_OBJECTS_PER_SLICE]
        del found[_OBJECTS_PER_SLICE:]
    num_removed = 0
    for slot in found:
        slot_state = state_of(records.slot_word(slot))
        if slot_state is SlotState.READY and (force or slot not in state.lock_counts):
            state.remove_ready(slot, records.read(slot))
            num_removed += 1
        elif slot_state is SlotState.WRITING and force:
            state.quarantine_writing(slot)
    return num_removed, next_slot
