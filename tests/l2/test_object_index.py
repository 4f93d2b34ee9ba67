"""The index of an adapter: states, leases, accounts and the order in which objects go."""

from __future__ import annotations

import threading

import pytest

from lmcache.errors import IntegrityError, KeyFormatError
from lmcache.eviction import make_policy
from lmcache.l2.object_index import ObjectIndex
from lmcache.testing.l2_backend import make_key

TTL_S = 10.0
KEYS = [make_key(number) for number in range(6)]


@pytest.fixture
def index(clock):
    index = ObjectIndex(make_policy("LRU"), 0, TTL_S, clock)
    yield index
    index.check_integrity()


def hold(index, *keys, num_bytes=100):
    for key in keys:
        assert index.begin_store(key, num_bytes)
        index.commit(key, num_bytes)


def test_an_object_is_found_only_while_it_is_held(index):
    key = KEYS[0]
    assert index.begin_store(key, 100)
    assert index.lease([key]) == [False]
    index.commit(key, 110)
    assert index.lease([key]) == [True]
    index.release([key])
    assert index.size(key) == 110
    hidden, leased, num_absent = index.begin_removal([key, KEYS[1]])
    assert (hidden, leased, num_absent) == ([key], [], 1)
    assert index.lease([key]) == [False]
    assert index.end_removal([key]) == [110]
    assert (len(index), index.usage()) == (0, (0, {}))


def test_a_key_in_work_is_nobody_elses(index):
    key = KEYS[0]
    index.begin_store(key, 100)
    assert not index.begin_store(key, 100)
    assert not index.adopt(key, 100)
    index.commit(key, 100)
    assert not index.begin_store(key, 100)
    index.begin_removal([key])
    assert not index.begin_store(key, 100)
    assert not index.adopt(key, 100)
    index.end_removal([key])
    assert index.begin_store(key, 100)
    index.abort(key)
    assert index.adopt(key, 70)
    assert not index.adopt(key, 70)
    assert index.size(key) == 70


def test_what_could_not_be_removed_is_held_again(index):
    hold(index, *KEYS[:2])
    index.begin_removal(KEYS[:2])
    index.restore(KEYS[:2])
    assert index.lease(KEYS[:2]) == [True, True]
    assert index.usage() == (200, {"": 200})


def test_what_is_being_removed_takes_room_but_is_not_missing_twice(clock):
    index = ObjectIndex(make_policy("LRU"), 300, TTL_S, clock)
    hold(index, *KEYS[:3])
    index.begin_store(KEYS[3], 100)
    assert index.missing_bytes() == 100
    index.begin_eviction(100, 10)
    assert index.usage()[0] == 300
    assert index.missing_bytes() == 0
    index.check_integrity()


def test_without_a_capacity_nothing_is_missing(index):
    hold(index, KEYS[0], num_bytes=1 << 50)
    assert index.missing_bytes() == 0


def test_forgetting_what_is_not_known(index):
    assert index.forget(KEYS[0]) == -1
    hold(index, KEYS[0])
    index.lease(KEYS[:1])
    assert index.forget(KEYS[0]) == 100
    assert index.forget(KEYS[0]) == -1
    assert index.num_leased == 0


def test_leases_end_and_are_renewed(index, clock):
    hold(index, *KEYS[:2])
    index.lease(KEYS[:2])
    clock.advance(TTL_S / 2)
    index.lease(KEYS[:1])
    clock.advance(TTL_S / 2)
    assert index.expire_leases() == 1
    assert index.begin_removal(KEYS[:2])[:2] == ([KEYS[1]], [KEYS[0]])
    index.end_removal([KEYS[1]])
    clock.advance(TTL_S / 2)
    assert index.expire_leases() == 1
    index.release(KEYS[:2])


def test_force_removes_what_is_leased(index):
    hold(index, KEYS[0])
    index.lease(KEYS[:1])
    assert index.begin_removal(KEYS[:1], force=True)[0] == KEYS[:1]
    index.release(KEYS[:1])  # of an object that is no more
    index.end_removal(KEYS[:1])


def test_the_tail_of_a_lookup_goes_before_its_head(index):
    hold(index, *KEYS[:4])
    index.lease(KEYS[:3])
    index.release(KEYS[:3])
    victims = [key for key, _ in index.begin_eviction(1 << 40, 10)]
    assert victims == [KEYS[3], KEYS[2], KEYS[1], KEYS[0]]
    index.end_removal(victims)


def test_a_hash_of_another_length_is_refused_or_absent(index):
    short = type(KEYS[0])(b"short", "model", 0)
    with pytest.raises(KeyFormatError, match="has 32 bytes"):
        index.begin_store(short, 1)
    assert not index.contains(short)
    index.adopt(short, 1)
    assert len(index) == 0


def test_usage_is_kept_for_each_tenant(index):
    hold(index, make_key(1, cache_salt="a"), make_key(2, cache_salt="a"), make_key(1, cache_salt="b"))
    assert index.usage() == (300, {"a": 200, "b": 100})
    index.forget(make_key(1, cache_salt="b"))
    assert index.usage() == (200, {"a": 200})


def test_pages_leave_out_what_is_not_held(index):
    hold(index, *KEYS)
    index.begin_removal(KEYS[1:3])
    first, cursor = index.page(0, 2, None)
    second, end = index.page(cursor, 10, None)
    assert [key for key, _ in first + second] == [KEYS[0], *KEYS[3:]]
    assert end == 0
    assert index.page(10**9, 10, None) == ([], 0)
    index.end_removal(KEYS[1:3])


def test_books_that_do_not_add_up_are_noticed(clock):
    index = ObjectIndex(make_policy("LRU"), 0, TTL_S, clock)
    hold(index, KEYS[0])
    index._used_bytes += 1
    with pytest.raises(IntegrityError):
        index.check_integrity()


def test_one_of_many_threads_may_store(index):
    won: list[bool] = []
    barrier = threading.Barrier(8)

    def claim():
        barrier.wait()
        won.append(index.begin_store(KEYS[0], 100))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
    index.abort(KEYS[0])


def test_a_probe_forgets_what_is_absent_unless_it_left_meanwhile(index):
    gone, back, unknown = KEYS[:3]
    hold(index, gone, back)
    index.begin_probe([gone, back, unknown])
    index.begin_removal([back])
    index.end_removal([back])
    hold(index, back, unknown)
    assert index.end_probe([gone, back, unknown], [-1] * 3, {gone, back}) == [(gone, 100)]
    assert [index.contains(key) for key in (gone, back, unknown)] == [False, True, True]
