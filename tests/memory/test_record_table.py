"""Index records: slot words, generations, the reader's view, and what a scan thinks of broken bytes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.memory.records import (
    RECORD_BYTES,
    RecordTable,
    SlotReader,
    SlotRecord,
    SlotState,
    make_slot_word,
    ready_word,
    state_of,
)
from lmcache.protocol.blobs import split_places

START = 4096
NUM_RECORDS = 8
PAYLOAD_AND_CHECKSUM = [*range(80), *range(112, 120)]
ADVICE_AND_PADDING = list(range(80, 112))


class Index:
    """A mapped index with a writer and a reader on it."""

    def __init__(self) -> None:
        self.mapping = mmap.mmap(-1, START + NUM_RECORDS * RECORD_BYTES)
        self.table = RecordTable(self.mapping, START, NUM_RECORDS)
        self.reader = SlotReader(self.mapping, START, NUM_RECORDS)

    def flip(self, slot: int, byte: int, bit: int) -> None:
        self.mapping[START + slot * RECORD_BYTES + byte] ^= 1 << bit

    def close(self) -> None:
        self.reader.close()
        self.table.close()
        self.mapping.close()


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    yield index
    index.close()


def record(number: int = 0, length: int = 4096) -> SlotRecord:
    return SlotRecord(bytes([number]) * 32, number * 4096, length, 1 + number, 2, 0x01000100, 3, 4, 2**64 - 1)


RECORDS = st.builds(
    SlotRecord,
    st.binary(min_size=32, max_size=32),
    *[st.integers(0, 2**64 - 1)] * 2,
    *[st.integers(0, 2**32 - 1)] * 4,
    *[st.integers(0, 2**64 - 1)] * 2,
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(written: SlotRecord) -> None:
    index = Index()
    word = index.table.reserve(3, written)
    assert index.table.read(3) == written
    assert index.table.digest(3) == written.digest
    assert index.table.owner_uid(3) == written.owner_uid
    assert split_places(index.table.places([3])) == [(3, word, written.offset, written.length)]
    scanned = index.table.scan()
    assert scanned.broken == []
    assert scanned.slots.tolist() == [3]
    columns = (scanned.model_ids, scanned.salt_ids, scanned.kv_ranks, scanned.group_ids, scanned.root_ids)
    assert [int(column[0]) for column in columns] == [
        written.model_id, written.salt_id, written.kv_rank, written.group_id, written.root_id,
    ]  # fmt: skip
    index.close()


def test_a_slot_word_joins_generation_and_state() -> None:
    word = make_slot_word(5, SlotState.WRITING)
    assert word == 5 << 3 | 1
    assert state_of(word) is SlotState.WRITING
    assert (
        ready_word(word) == make_slot_word(5, SlotState.READY) == ready_word(make_slot_word(5, SlotState.QUARANTINED))
    )


def test_the_states_of_one_life_share_a_generation_and_the_next_life_gets_another(index: Index) -> None:
    word = index.table.reserve(0, record())
    assert word == make_slot_word(1, SlotState.WRITING)
    index.table.set_state(0, SlotState.READY)
    assert index.table.slot_word(0) == ready_word(word)
    index.table.set_state(0, SlotState.FREE)
    assert index.table.reserve(0, record(1)) == make_slot_word(2, SlotState.WRITING)


@given(st.lists(st.tuples(st.integers(0, NUM_RECORDS - 1), st.sampled_from(list(SlotState))), max_size=40))
def test_a_reservation_never_gets_a_word_that_was_there_before(steps: list[tuple[int, SlotState]]) -> None:
    index, seen = Index(), set()
    for slot, state in steps:
        if state_of(index.table.slot_word(slot)) is SlotState.FREE:
            place = (slot, index.table.reserve(slot, record()) >> 3)
            assert place not in seen
            seen.add(place)
        else:
            index.table.set_state(slot, state)
    index.close()


@pytest.mark.parametrize("end", [SlotState.FREE, SlotState.QUARANTINED])
def test_a_reader_sees_that_its_slot_is_no_longer_its_own(index: Index, end: SlotState) -> None:
    word = ready_word(index.table.reserve(0, record()))
    index.table.set_state(0, SlotState.READY)
    assert index.reader.holds(0, word)
    assert index.reader.has_digest(0, record().digest)
    index.table.set_state(0, end)
    assert not index.reader.holds(0, word)
    index.table.set_state(0, SlotState.FREE)
    index.table.reserve(0, record())
    index.table.set_state(0, SlotState.READY)
    assert not index.reader.holds(0, word), "the same object in the same slot is still another life"


@pytest.mark.parametrize("slot", [-1, NUM_RECORDS, 2**40])
def test_a_slot_outside_the_index_is_held_by_nobody(index: Index, slot: int) -> None:
    assert not index.reader.holds(slot, 0)


@given(st.data())
def test_a_scan_finds_any_flipped_bit_and_only_its_record(data: st.DataObject) -> None:
    index = Index()
    for slot in range(NUM_RECORDS):
        index.table.reserve(slot, record(slot))
    slot, byte = data.draw(st.integers(0, NUM_RECORDS - 1)), data.draw(st.sampled_from(PAYLOAD_AND_CHECKSUM))
    index.flip(slot, byte, data.draw(st.integers(0, 7)))
    scanned = index.table.scan()
    assert scanned.broken == [slot]
    assert scanned.slots.tolist() == [other for other in range(NUM_RECORDS) if other != slot]
    assert [int(offset) for offset in scanned.offsets] == [other * 4096 for other in scanned.slots.tolist()]
    index.close()


@given(byte=st.sampled_from(ADVICE_AND_PADDING), bit=st.integers(0, 7))
def test_recency_is_advice_and_breaks_no_record(byte: int, bit: int) -> None:
    index = Index()
    index.table.reserve(2, record())
    index.flip(2, byte, bit)
    assert index.table.scan().broken == []
    index.close()


def test_a_state_that_does_not_exist_breaks_the_record(index: Index) -> None:
    index.table.reserve(1, record())
    index.flip(1, 120, 2)
    assert index.table.scan().broken == [1]


def test_recency_is_kept_in_the_order_given(index: Index) -> None:
    for slot in range(4):
        index.table.reserve(slot, record(slot))
    index.table.set_recency([2, 0, 3], 10)
    assert index.table.scan().recency.tolist() == [11, 0, 10, 12]


def test_slots_are_found_by_state(index: Index) -> None:
    for slot, state in enumerate((SlotState.READY, SlotState.WRITING, SlotState.QUARANTINED, SlotState.READY)):
        index.table.reserve(slot, record(slot))
        index.table.set_state(slot, state)
    assert index.table.slots_in((SlotState.WRITING, SlotState.QUARANTINED)) == [1, 2]
    assert index.table.used_slots().tolist() == [0, 1, 2, 3]
