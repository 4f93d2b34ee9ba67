"""Exact eviction: only when needed, only as much as needed, tail first, ranks together, locked never."""

from __future__ import annotations

import pytest

from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

KEY = NamespaceKey("m", b"r" * 32, "")
RANK_0, RANK_1 = (0x02000200, 0), (0x02010201, 0)
DIGESTS = [bytes([number]) * 32 for number in range(32)]


def test_nothing_is_evicted_while_there_is_room(open_pool: OpenPool) -> None:
    l1 = open_pool(units=8).l1
    assert Writer(l1, KEY, RANK_0).store(DIGESTS[:8]) == 8
    assert l1.take_removed() == []
    assert l1.memory_bytes() == (8 * UNIT_BYTES, 8 * UNIT_BYTES)


@pytest.mark.parametrize("num_new", range(1, 9))
def test_a_stored_prompt_is_evicted_from_its_tail_by_exactly_what_is_needed(open_pool: OpenPool, num_new: int) -> None:
    l1 = open_pool(units=8).l1
    Writer(l1, KEY, RANK_0).store(DIGESTS[:8])
    Writer(l1, KEY, RANK_0).store(DIGESTS[8 : 8 + num_new])
    assert [event.digest for event in l1.take_removed()] == DIGESTS[7::-1][:num_new]


def test_a_used_prompt_outlives_one_that_was_stored_later(open_pool: OpenPool) -> None:
    l1 = open_pool(units=8).l1
    writer = Writer(l1, KEY, RANK_0)
    writer.store(DIGESTS[:4])
    writer.store(DIGESTS[4:8])
    l1.lookup(KEY, [RANK_0], DIGESTS[:4], None)
    writer.store(DIGESTS[8:10])
    assert [event.digest for event in l1.take_removed()] == [DIGESTS[7], DIGESTS[6]]


def test_a_large_object_takes_no_more_neighbours_than_it_needs(open_pool: OpenPool) -> None:
    l1 = open_pool(units=8).l1
    writer = Writer(l1, KEY, RANK_0)
    for digest in DIGESTS[:8]:
        writer.store([digest])
    writer.store(DIGESTS[8:9], units=3)
    assert [event.digest for event in l1.take_removed()] == DIGESTS[:3]
    assert l1.memory_bytes()[0] == 8 * UNIT_BYTES


def test_a_free_record_is_made_when_bytes_are_left_but_records_are_not(open_pool: OpenPool) -> None:
    l1 = open_pool(units=16, records=4).l1
    writer = Writer(l1, KEY, RANK_0)
    for digest in DIGESTS[:5]:
        assert writer.store([digest]) == 1
    assert [event.digest for event in l1.take_removed()] == DIGESTS[:1]


def test_ranks_of_a_chunk_leave_together(open_pool: OpenPool) -> None:
    l1 = open_pool(units=8).l1
    for rank in (RANK_0, RANK_1):
        Writer(l1, KEY, rank).store(DIGESTS[:4])
    Writer(l1, KEY, RANK_0).store(DIGESTS[4:5])
    assert [event.digest for event in l1.take_removed()] == [DIGESTS[3]] * 2
    assert len(l1.lookup(KEY, [RANK_0, RANK_1], DIGESTS, None)[0]) == 6


def test_locked_objects_are_never_evicted(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    writer = Writer(l1, KEY, RANK_0)
    writer.store(DIGESTS[:4])
    slots, blob = l1.lookup(KEY, [RANK_0], DIGESTS[:4], LockBudget(4 * UNIT_BYTES))
    assert writer.store(DIGESTS[4:8]) == 0
    assert l1.take_removed() == []
    l1.unlock([Place(slot, word) for slot, word, _, _ in split_places(blob)])
    assert writer.store(DIGESTS[4:5]) == 1
    assert [event.digest for event in l1.take_removed()] == [DIGESTS[3]], "unlocking goes from the tail, too"
    assert len(slots) == 4


def test_slots_being_written_are_never_evicted(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    assert len(Writer(l1, KEY, RANK_0).reserve(DIGESTS[:4])) == 4
    assert Writer(l1, KEY, RANK_0, uid=2).reserve(DIGESTS[4:8]) == []


def test_what_can_never_fit_evicts_nothing(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    Writer(l1, KEY, RANK_0).store(DIGESTS[:4])
    result = l1.reserve(KEY, RANK_0, 1, DIGESTS[4:5], 5 * UNIT_BYTES)
    assert list(result.statuses) == [ReserveStatus.NO_ROOM]
    assert l1.take_removed() == []
    assert result.num_evicted == 0


def test_the_noop_policy_refuses_instead_of_evicting(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4, policy="noop").l1
    writer = Writer(l1, KEY, RANK_0)
    assert writer.store(DIGESTS[:4]) == 4
    assert writer.store(DIGESTS[4:5]) == 0
    assert writer.holds(DIGESTS[:5]) == [True] * 4 + [False]


def test_the_same_digest_twice_in_one_batch_is_reserved_once(open_pool: OpenPool) -> None:
    result = open_pool().l1.reserve(KEY, RANK_0, 1, [DIGESTS[0]] * 2, UNIT_BYTES)
    assert list(result.statuses) == [ReserveStatus.RESERVED, ReserveStatus.BUSY]


def test_evicting_the_last_object_of_the_namespace_that_is_stored_to_keeps_it_whole(open_pool: OpenPool) -> None:
    l1 = open_pool(units=1).l1
    writer = Writer(l1, KEY, RANK_0)
    for digest in DIGESTS[:3]:
        assert writer.store([digest]) == 1
        l1.check_integrity()
    assert writer.holds(DIGESTS[:3]) == [False, False, True]
