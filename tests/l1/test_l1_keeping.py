"""L1 told to leave what it holds as it is, to keep nothing, to order it otherwise."""

from __future__ import annotations

import pytest

from lmcache.eviction import make_policy, policy_names
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

KEY = NamespaceKey("m", b"r" * 32, "")
RANK = (0x01000100, 0)
DIGESTS = [bytes([number]) * 32 for number in range(16)]


def locked(writer: Writer, digests: list[bytes]) -> list[Place]:
    _, packed = writer.l1.lookup(KEY, [RANK], digests, LockBudget(1 << 30))
    return [Place(slot, word) for slot, word, _, _ in split_places(packed)]


def test_frozen_nothing_comes_and_nothing_goes(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:3])
    under_way = writer.reserve(DIGESTS[3:4])
    l1.freeze(True)
    assert list(l1.reserve(KEY, RANK, 1, DIGESTS[4:5], UNIT_BYTES).statuses) == [ReserveStatus.NO_ROOM]
    assert l1.commit(1, under_way) == []
    assert l1.evict_to(0, 10) == 0
    assert l1.take_removed() == []
    assert writer.holds(DIGESTS[:4]) == [True, True, True, False]
    l1.check_integrity()
    l1.freeze(False)
    assert writer.store(DIGESTS[3:4]) == 1


def test_frozen_a_load_does_not_arrive(open_pool: OpenPool) -> None:
    l1 = open_pool().l1
    place = Writer(l1, KEY, RANK).reserve(DIGESTS[:1])[0]
    l1.freeze(True)
    assert l1.commit_loaded(1, place, lock=True, is_temporary=False) is None
    assert l1.memory_bytes()[0] == 0


@pytest.mark.parametrize("policy", ["LRU", "LFU", "FIFO", "MRU", "ARC", "S3-FIFO"])
def test_frozen_readers_change_no_order(open_pool: OpenPool, policy: str) -> None:
    """What is evicted after a freeze with readers is what would have been without it."""
    evicted = []
    for has_freeze in (False, True):
        pool = open_pool(units=4, policy=policy)
        writer = Writer(pool.l1, KEY, RANK)
        for digest in DIGESTS[:4]:
            writer.store([digest])
        if has_freeze:
            pool.l1.freeze(True)
            for digest in (DIGESTS[1], DIGESTS[0]):
                pool.l1.lookup(KEY, [RANK], [digest], None)
                pool.l1.touch(KEY, [RANK], [digest])
            held = pool.l1._state.slots.records.scan().recency.tolist()
            assert held == sorted(held)
            order = list(pool.l1._state.policy.victims())
            pool.l1.unlock(locked(writer, DIGESTS[:1]))
            assert list(pool.l1._state.policy.victims()) == order
            pool.l1.freeze(False)
        for digest in DIGESTS[4:7]:
            writer.store([digest])
        evicted.append([event.digest for event in pool.l1.take_removed()])
        pool.close(keep=False)
    assert evicted[0] == evicted[1]


def test_locks_across_a_freeze_protect(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:4])
    before = locked(writer, DIGESTS[:1])
    l1.freeze(True)
    within = locked(writer, DIGESTS[1:2])
    l1.unlock(before)
    l1.freeze(False)
    l1.check_integrity()
    assert writer.store(DIGESTS[4:8]) == 3
    assert writer.holds(DIGESTS[:2]) == [False, True]
    l1.unlock(within)
    assert writer.store(DIGESTS[8:12]) == 4


def test_clear_is_obeyed_while_frozen(open_pool: OpenPool) -> None:
    l1 = open_pool(units=4).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:4])
    l1.freeze(True)
    l1.unlock(locked(writer, DIGESTS[:2]))
    assert l1.clear(force=False) == 4
    l1.freeze(False)
    l1.check_integrity()
    assert writer.store(DIGESTS[:4]) == 4


def test_what_is_let_go_waits_for_its_readers(open_pool: OpenPool) -> None:
    l1 = open_pool().l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:2])
    places = [Place(slot, word) for slot, word, _, _ in split_places(l1.lookup(KEY, [RANK], DIGESTS[:2], None)[1])]
    held = locked(writer, DIGESTS[:1])
    l1.let_go([*places, Place(places[0].slot, places[0].slot_word + 4)])
    l1.check_integrity()
    assert writer.holds(DIGESTS[:2]) == [True, False]
    l1.unlock(held)
    assert writer.holds(DIGESTS[:2]) == [False, False]


def test_where_nothing_loaded_is_kept(open_pool: OpenPool) -> None:
    """Nobody can ask for more; what nobody has locked does not arrive."""
    l1 = open_pool().l1
    writer = Writer(l1, KEY, RANK)
    l1.keep_loaded(False)
    late, wanted = writer.reserve(DIGESTS[:2])
    assert l1.commit_loaded(1, late, lock=False, is_temporary=False) is None
    place = l1.commit_loaded(1, wanted, lock=True, is_temporary=False)
    assert place is not None
    again = l1.lock_key(KEY, RANK, DIGESTS[1], retain=True)
    assert again is not None
    l1.unlock([place])
    assert writer.holds(DIGESTS[:2]) == [False, True]
    l1.unlock([again])
    assert l1.memory_bytes()[0] == 0


@pytest.mark.parametrize("policy", policy_names())
def test_another_policy_begins_with_the_order_of_use(open_pool: OpenPool, policy: str) -> None:
    l1 = open_pool(units=8).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:4])
    l1.lookup(KEY, [RANK], DIGESTS[3:4], None)
    held = locked(writer, DIGESTS[:1])
    l1.set_policy(make_policy(policy))
    l1.check_integrity()
    victims = list(l1._state.policy.victims())
    assert held[0].slot not in victims
    if policy == "LRU":
        digests = [l1._state.slots.records.digest(slot) for slot in victims]
        assert digests == [DIGESTS[2], DIGESTS[1], DIGESTS[3]]
    l1.unlock(held)
    writer.store(DIGESTS[4:10])
    l1.check_integrity()
