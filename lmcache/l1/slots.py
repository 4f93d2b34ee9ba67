"""Slots: records joined with bytes of the pool. Takes and frees both together.

The order of writes is what crash safety rests on: bytes are taken before a record names
them, and a record is freed before its bytes can be handed out again.
"""

from __future__ import annotations

from array import array

from lmcache.errors import IntegrityError
from lmcache.memory.allocator import Allocator
from lmcache.memory.records import RecordTable, SlotRecord, SlotState


class SlotTable:
    """Free slots, their bytes and counts by state. One owner, not thread-safe."""

    def __init__(self, records: RecordTable, allocator: Allocator) -> None:
        self.records = records
        self.allocator = allocator
        # A stack of free slot numbers, lowest on top, so that used records stay together.
        self._free_slots = array("I", range(records.num_records - 1, -1, -1))
        self.counts = dict.fromkeys((SlotState.WRITING, SlotState.READY, SlotState.QUARANTINED), 0)
        self.quarantined: set[int] = set()
        self.quarantined_bytes = 0

    def has_room(self, length: int) -> bool:
        return bool(self._free_slots) and self.allocator.largest_free_bytes >= self.allocator.rounded(length)

    def reserve(self, make_record: SlotRecord) -> int:
        """A WRITING slot for this record at `make_record.offset`, whose bytes are taken already."""
        slot = self._free_slots.pop()
        self.records.reserve(slot, make_record)
        self.counts[SlotState.WRITING] += 1
        return slot

    def set_state(self, slot: int, old: SlotState, new: SlotState) -> None:
        """WRITING to READY (commit), or either to QUARANTINED."""
        self.records.set_state(slot, new)
        self.counts[old] -= 1
        self.counts[new] += 1
        if new is SlotState.QUARANTINED:
            self.quarantined.add(slot)
            self.quarantined_bytes += self.records.extent(slot)[1]

    def free(self, slot: int, state: SlotState) -> None:
        offset, length = self.records.extent(slot)
        self.records.set_state(slot, SlotState.FREE)
        self.allocator.free(offset, length)
        self._free_slots.append(slot)
        self.counts[state] -= 1
        if state is SlotState.QUARANTINED:
            self.quarantined.remove(slot)
            self.quarantined_bytes -= length

    def adopt(self, used: dict[int, SlotState]) -> None:
        """After recovery: these slots are in use, their bytes are taken in the allocator."""
        free = [slot for slot in range(self.records.num_records - 1, -1, -1) if slot not in used]
        self._free_slots = array("I", free)
        for slot, state in used.items():
            self.counts[state] += 1
            if state is SlotState.QUARANTINED:
                self.quarantined.add(slot)
                self.quarantined_bytes += self.records.extent(slot)[1]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless slots, states and bytes add up."""
        self.allocator.check_integrity()
        used = self.records.used_slots().tolist()
        if len(used) + len(self._free_slots) != self.records.num_records or set(used) & set(self._free_slots):
            raise IntegrityError("free and used slots do not add up")
        if sorted(self.quarantined) != self.records.slots_in((SlotState.QUARANTINED,)):
            raise IntegrityError("quarantined slots do not add up")
        extents = sorted(self.records.extent(slot) for slot in used)
        position = 0
        for offset, length in extents:
            if offset < position:
                raise IntegrityError(f"two slots share byte {offset}")
            position = offset + self.allocator.rounded(length)
        if sum(self.allocator.rounded(length) for _, length in extents) != self.allocator.used_bytes:
            raise IntegrityError("bytes of slots and of the allocator do not add up")
