"""The mapped index: one fixed record per slot, the only durable truth about the pool.

A record is sixteen 64-bit words. Words 0-9 are the payload, word 10 the recency (advice
only), word 11 the flags, word 14 the xxh3 of the payload, word 15 the slot word. The payload is written
first, the slot word last, as one aligned store: whoever sees a slot word sees the payload
that belongs to it. Only the server writes; clients map the file read-only.

    slot word = generation << 3 | state

        FREE --reserve (generation + 1)--> WRITING --commit--> READY --evict--> FREE
                                              |                   |
                                              | time-out, clear,  | (never to WRITING directly)
                                              v restart           v
                                         QUARANTINED --owner is done or dead--> FREE

A generation is never used twice for one slot, so a reader that holds (slot, generation)
compares one word before and after its copy and knows whether the bytes were its own
(a seqlock).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import xxhash

from lmcache.telemetry.steps import NO_STEPS, StepObserver

RECORD_WORDS = 16
RECORD_BYTES = RECORD_WORDS * 8
_PAYLOAD = struct.Struct("<32sQQIIIIQQ")  # words 0 to 9
_OFFSET_WORD, _LENGTH_WORD, _NAMES_WORD, _RANK_WORD, _ROOT_WORD, _OWNER_WORD = 4, 5, 6, 7, 8, 9
_RECENCY_WORD, _FLAGS_WORD, _CHECKSUM_WORD, _SLOT_WORD = 10, 11, 14, 15
_LOSSY_FLAG = 1
_STATE_BITS = 3
_STATE_MASK = (1 << _STATE_BITS) - 1
_WORD_MASK = (1 << 64) - 1
# Names and ranks lie two in a word, models and ranks in its lower half.
_ID_MASK = (1 << 32) - 1
# Odd factors spread names and ranks over all bits of a key's hash.
_NAMES_FACTOR, _RANK_FACTOR = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
# What a lookup answers per chunk and rank: slot, slot word, offset, length.
PLACE_WORDS = 4


class SlotState(IntEnum):
    FREE = 0
    WRITING = 1
    READY = 2
    QUARANTINED = 3


def make_slot_word(generation: int, state: SlotState) -> int:
    return generation << _STATE_BITS | state


def state_of(slot_word: int) -> SlotState:
    return SlotState(slot_word & _STATE_MASK)


def ready_word(slot_word: int) -> int:
    """The slot word this reservation has once committed."""
    return slot_word & ~_STATE_MASK | SlotState.READY


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """Payload of one record. Names are ids of the names table; `owner_uid` is the writer."""

    digest: bytes
    offset: int
    length: int
    model_id: int
    salt_id: int
    kv_rank: int
    group_id: int
    root_id: int
    owner_uid: int


@dataclass(frozen=True, slots=True)
class ScannedRecords:
    """Whole records in use, as columns in slot order, and the slots whose record is broken."""

    slots: np.ndarray
    states: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    model_ids: np.ndarray
    salt_ids: np.ndarray
    kv_ranks: np.ndarray
    group_ids: np.ndarray
    root_ids: np.ndarray
    recency: np.ndarray
    broken: list[int]


class RecordTable:
    """The records of one mapped index file, from byte `start` on. Writer side; one owner."""

    def __init__(self, mapping: mmap.mmap, start: int, num_records: int, steps: StepObserver = NO_STEPS) -> None:
        self._mapping = mapping
        self._start = start
        self._steps = steps
        self.num_records = num_records
        self._view = memoryview(mapping)[start : start + num_records * RECORD_BYTES]
        self._words = self._view.cast("Q")
        self.array = np.frombuffer(self._view, dtype=np.uint64).reshape(num_records, RECORD_WORDS)

    def close(self) -> None:
        del self.array
        self._words.release()
        self._view.release()

    def slot_word(self, slot: int) -> int:
        return self._words[slot * RECORD_WORDS + _SLOT_WORD]

    def extent(self, slot: int) -> tuple[int, int]:
        base = slot * RECORD_WORDS
        return self._words[base + _OFFSET_WORD], self._words[base + _LENGTH_WORD]

    def set_state(self, slot: int, state: SlotState) -> None:
        """Move to another state within the same generation."""
        index = slot * RECORD_WORDS + _SLOT_WORD
        self._words[index] = self._words[index] & ~_STATE_MASK | state

    def reserve(self, slot: int, record: SlotRecord) -> int:
        """Fill a free record and return its new slot word (WRITING)."""
        payload = _PAYLOAD.pack(
            record.digest, record.offset, record.length, record.model_id, record.salt_id,
            record.kv_rank, record.group_id, record.root_id, record.owner_uid,
        )  # fmt: skip
        base = slot * RECORD_BYTES
        self._view[base : base + _PAYLOAD.size] = payload
        self._steps.reached("l1.payload")
        words, first = self._words, slot * RECORD_WORDS
        words[first + _FLAGS_WORD] = 0
        words[first + _CHECKSUM_WORD] = xxhash.xxh3_64_intdigest(payload)
        word = make_slot_word((words[first + _SLOT_WORD] >> _STATE_BITS) + 1, SlotState.WRITING)
        words[first + _SLOT_WORD] = word
        return word

    def mark_lossy(self, slot: int) -> None:
        """The bytes in this WRITING slot only resemble those that were computed. Before it is READY."""
        self._words[slot * RECORD_WORDS + _FLAGS_WORD] |= _LOSSY_FLAG

    def is_lossy(self, slot: int) -> bool:
        return bool(self._words[slot * RECORD_WORDS + _FLAGS_WORD] & _LOSSY_FLAG)

    def set_recency(self, slots: list[int], first_tick: int) -> None:
        """Note that these slots were used, the first of them least recently."""
        self.array[slots, _RECENCY_WORD] = np.arange(first_tick, first_tick + len(slots), dtype=np.uint64)

    def places(self, slots: list[int]) -> bytes:
        """`PLACE_WORDS` native 64-bit words per slot, as lookup and reserve answer them."""
        places = np.empty((len(slots), PLACE_WORDS), dtype=np.uint64)
        rows = self.array[slots]
        places[:, 0] = slots
        places[:, 1] = rows[:, _SLOT_WORD]
        places[:, 2] = rows[:, _OFFSET_WORD]
        places[:, 3] = rows[:, _LENGTH_WORD]
        return places.tobytes()

    def read(self, slot: int) -> SlotRecord:
        return SlotRecord(*_PAYLOAD.unpack_from(self._view, slot * RECORD_BYTES))

    def digest(self, slot: int) -> bytes:
        base = slot * RECORD_BYTES
        return bytes(self._view[base : base + 32])

    def digests(self, slots: np.ndarray) -> list[bytes]:
        """The digests of many slots at once."""
        blob = np.ascontiguousarray(self.array[slots, :4]).tobytes()
        return [blob[start : start + 32] for start in range(0, len(blob), 32)]

    def key_hash(self, slot: int) -> int:
        """64 bits that tell its key from others, while its names keep their ids."""
        words, base = self._words, slot * RECORD_WORDS
        mixed = words[base + _NAMES_WORD] * _NAMES_FACTOR ^ words[base + _RANK_WORD] * _RANK_FACTOR
        return (words[base] ^ mixed) & _WORD_MASK

    def key_hashes(self, slots: np.ndarray) -> np.ndarray:
        """The same for many slots at once."""
        rows = self.array[slots]
        names = rows[:, _NAMES_WORD] * np.uint64(_NAMES_FACTOR)
        hashes: np.ndarray = rows[:, 0] ^ names ^ rows[:, _RANK_WORD] * np.uint64(_RANK_FACTOR)
        return hashes

    def owner_uid(self, slot: int) -> int:
        return self._words[slot * RECORD_WORDS + _OWNER_WORD]

    def used_slots(self) -> np.ndarray:
        """Slots that are not FREE, ascending. Reads one word per record, not the payloads."""
        return np.flatnonzero((self.array[:, _SLOT_WORD] & np.uint64(_STATE_MASK)) != SlotState.FREE)

    def used_between(self, first: int, last: int, model_id: int | None = None) -> list[int]:
        """Slots in `[first, last)` that are not FREE, ascending; of one model, where it is given."""
        is_wanted = self.array[first:last, _SLOT_WORD] & np.uint64(_STATE_MASK) != SlotState.FREE
        if model_id is not None:
            is_wanted &= self.array[first:last, _NAMES_WORD] & np.uint64(_ID_MASK) == model_id
        slots: list[int] = (np.flatnonzero(is_wanted) + first).tolist()
        return slots

    def slots_in(self, states: tuple[SlotState, ...]) -> list[int]:
        """Slots in any of these states, ascending."""
        column = self.array[:, _SLOT_WORD] & np.uint64(_STATE_MASK)
        slots: list[int] = np.flatnonzero(np.isin(column, states)).tolist()
        return slots

    def scan(self) -> ScannedRecords:
        """All records in use. Checks each payload against its xxh3 and its state for sense."""
        used = self.used_slots()
        rows = self.array[used]
        checksum_of, view, size = xxhash.xxh3_64_intdigest, self._view, _PAYLOAD.size
        bases = (used * RECORD_BYTES).tolist()
        checksums = np.array([checksum_of(view[base : base + size]) for base in bases], dtype=np.uint64)
        states = rows[:, _SLOT_WORD] & np.uint64(_STATE_MASK)
        is_whole = (checksums == rows[:, _CHECKSUM_WORD]) & (states <= max(SlotState))
        rows, low = rows[is_whole], np.uint64(_ID_MASK)
        return ScannedRecords(
            slots=used[is_whole],
            states=states[is_whole],
            offsets=rows[:, _OFFSET_WORD],
            lengths=rows[:, _LENGTH_WORD],
            model_ids=rows[:, _NAMES_WORD] & low,
            salt_ids=rows[:, _NAMES_WORD] >> np.uint64(32),
            kv_ranks=rows[:, _RANK_WORD] & low,
            group_ids=rows[:, _RANK_WORD] >> np.uint64(32),
            root_ids=rows[:, _ROOT_WORD],
            recency=rows[:, _RECENCY_WORD],
            broken=used[~is_whole].tolist(),
        )


class SlotReader:
    """Reader side of the index: checks promised places against the mapped words.

    Thread-safe: it only reads. The interpreter's own locking orders the copy between the
    two checks; each check is one aligned 64-bit load.
    """

    def __init__(self, mapping: mmap.mmap, start: int, num_records: int) -> None:
        self._view = memoryview(mapping)[start : start + num_records * RECORD_BYTES]
        self._words = self._view.cast("Q")
        self.num_records = num_records

    def holds(self, slot: int, slot_word: int) -> bool:
        """Whether the slot is, right now, in exactly this state and generation."""
        return 0 <= slot < self.num_records and self._words[slot * RECORD_WORDS + _SLOT_WORD] == slot_word

    def has_digest(self, slot: int, digest: bytes) -> bool:
        base = slot * RECORD_BYTES
        return self._view[base : base + 32] == digest

    def is_lossy(self, slot: int) -> bool:
        """To be asked between two looks at the slot word: of the generation that it names."""
        return bool(self._words[slot * RECORD_WORDS + _FLAGS_WORD] & _LOSSY_FLAG)

    def close(self) -> None:
        self._words.release()
        self._view.release()
