"""The part of the L2 contract about room: capacity, eviction, usage, and the events that tell of it."""

from __future__ import annotations

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import StoreStatus
from lmcache.testing.l2_backend import Bench, make_data, make_key

NUM_OBJECTS = 4


def _fill(bench: Bench, count: int = NUM_OBJECTS, start: int = 0) -> list[ObjectKey]:
    keys = [make_key(number) for number in range(start, start + count)]
    for number, key in enumerate(keys, start=start):
        assert bench.store(key, make_data(number)) is StoreStatus.STORED
    return keys


def _limited(bench: Bench, policy: str = "LRU") -> int:
    """The bench with an adapter that has room for so many objects and not one more; bytes of one."""
    if not bench.backend.respects_capacity:
        pytest.skip("this adapter does not make room by itself")
    size = bench.object_bytes(make_key(1000), make_data(1000))
    bench.reopen(NUM_OBJECTS * size + size // 2, policy)
    return size


class RoomContract:
    def test_usage_is_what_the_backend_holds(self, bench: Bench) -> None:
        keys = [make_key(number, cache_salt=salt) for number, salt in enumerate(["", "a", "a", "b"])]
        for number, key in enumerate(keys):
            bench.store(key, make_data(number, 1000 * (number + 1)))
        sizes = [bench.backend.stored_bytes(key) for key in keys]
        usage = bench.adapter.usage()
        assert usage.total_bytes_used == sum(sizes)
        assert dict(usage.bytes_by_cache_salt) == {"": sizes[0], "a": sizes[1] + sizes[2], "b": sizes[3]}
        bench.adapter.delete([keys[0], keys[2]])
        usage = bench.adapter.usage()
        assert usage.total_bytes_used == sizes[1] + sizes[3]
        assert dict(usage.bytes_by_cache_salt) == {"a": sizes[1], "b": sizes[3]}
        assert bench.adapter.num_objects in (2, -1)

    def test_the_oldest_go_first(self, bench: Bench) -> None:
        _limited(bench)
        keys = _fill(bench)
        assert bench.is_held(keys[0])  # used just now
        _fill(bench, count=2, start=10)
        assert [bench.is_held(key) for key in keys] == [True, False, False, True]
        assert bench.events.evicted == [keys[1], keys[2]]
        assert bench.backend.num_objects() == NUM_OBJECTS
        bench.check()

    def test_capacity_is_never_exceeded(self, bench: Bench) -> None:
        _limited(bench)
        for number in range(3 * NUM_OBJECTS):
            bench.store(make_key(number), make_data(number))
            usage = bench.adapter.usage()
            assert 0 < usage.total_bytes_used <= usage.total_capacity_bytes
            assert usage.usage_fraction <= 1
            assert bench.backend.num_objects() <= NUM_OBJECTS
        bench.check()

    def test_leased_objects_are_not_evicted(self, bench: Bench) -> None:
        _limited(bench)
        keys = _fill(bench)
        bench.adapter.lookup(keys)
        assert bench.store(make_key(10), make_data(10)) is StoreStatus.NO_ROOM
        assert not bench.is_held(make_key(10))
        bench.adapter.release(keys[2:3])
        assert bench.store(make_key(10), make_data(10)) is StoreStatus.STORED
        assert bench.events.evicted == keys[2:3]
        assert [bench.load(key, 4096).data for key in keys[:2]] == [make_data(0), make_data(1)]
        bench.check()

    def test_the_first_of_a_prompt_goes_last(self, bench: Bench) -> None:
        _limited(bench)
        keys = _fill(bench)
        bench.adapter.lookup(keys)
        bench.adapter.release(keys)
        _fill(bench, count=3, start=10)
        assert bench.events.evicted == [keys[3], keys[2], keys[1]]

    def test_noop_never_evicts(self, bench: Bench) -> None:
        _limited(bench, "noop")
        keys = _fill(bench)
        assert bench.store(make_key(10), make_data(10)) is StoreStatus.NO_ROOM
        assert all(map(bench.is_held, keys))
        assert bench.events.evicted == []
        assert bench.events.deleted == []
        assert bench.backend.num_objects() == NUM_OBJECTS

    def test_what_can_never_fit_is_refused_without_evicting(self, bench: Bench) -> None:
        size = _limited(bench)
        keys = _fill(bench)
        data = make_data(10, 5 * size)
        assert bench.store(make_key(10), data) is StoreStatus.NO_ROOM
        assert all(map(bench.is_held, keys))
        assert bench.backend.num_objects() == NUM_OBJECTS

    def test_evict_on_request(self, bench: Bench) -> None:
        keys = _fill(bench)
        sizes = [bench.backend.stored_bytes(key) for key in keys]
        bench.adapter.lookup(keys[:1])
        assert bench.adapter.evict(sizes[1] + 1, 100) == (2, sizes[1] + sizes[2])
        assert bench.adapter.evict(sum(sizes), 100) == (1, sizes[3])
        assert bench.events.evicted == keys[1:]
        assert bench.events.deleted == list(zip(keys[1:], sizes[1:], strict=True))
        assert bench.is_held(keys[0])
        assert bench.backend.num_objects() == 1

    def test_evict_keeps_to_its_count(self, bench: Bench) -> None:
        keys = _fill(bench)
        assert bench.adapter.evict(1 << 40, 1)[0] == 1
        assert bench.events.evicted == keys[:1]

    def test_a_tenant_can_be_evicted_alone(self, bench: Bench) -> None:
        bench.reopen(policy="IsolatedLRU")
        keys = [make_key(number, cache_salt="ab"[number % 2]) for number in range(6)]
        for number, key in enumerate(keys):
            bench.store(key, make_data(number))
        size = bench.backend.stored_bytes(keys[1])
        assert bench.adapter.evict(size, 100, tenant="b") == (1, size)
        assert bench.adapter.evict(1 << 40, 100, tenant="b")[0] == 2
        assert bench.events.evicted == [keys[1], keys[3], keys[5]]
        assert set(bench.adapter.usage().bytes_by_cache_salt) == {"a"}
        bench.check()

    def test_every_event_is_told_once(self, bench: Bench) -> None:
        keys = _fill(bench, count=3)
        sizes = [bench.backend.stored_bytes(key) for key in keys]
        bench.store(keys[0], make_data(0))
        bench.adapter.lookup([*keys, make_key(10)])
        bench.load(keys[1], 4096)
        bench.adapter.release(keys)
        bench.adapter.delete([*keys[:2], keys[0], make_key(10)])
        bench.adapter.evict(1, 100)
        bench.adapter.evict(1, 100)
        assert bench.events.stored == list(zip(keys, sizes, strict=True))
        assert bench.events.accessed == [keys[1]]
        assert bench.events.evicted == [keys[2]]
        assert sorted(bench.events.deleted, key=lambda event: keys.index(event[0])) == bench.events.stored

    def test_the_status_is_healthy(self, bench: Bench) -> None:
        status = bench.adapter.report_status()
        assert status["is_healthy"] is True
        assert status["type"] == bench.adapter.class_name
