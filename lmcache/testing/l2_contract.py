"""The contract of an L2 adapter as tests: subclass `L2AdapterContract` and name the backend.

    class TestMemory(L2AdapterContract):
        @pytest.fixture
        def backend(self):
            return MemoryBackend()

Every adapter must pass all of it. The parts: this file (objects and leases), `l2_contract_damage`,
`l2_contract_room` and `l2_contract_listing`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmcache.core.keys import CACHE_SALT_CHARS_MAX, ObjectKey
from lmcache.errors import KeyFormatError, ObjectMissingError
from lmcache.l2.base import Source, StoreStatus
from lmcache.testing.l2_backend import LEASE_TTL_S, Bench, L2Backend, make_data, make_key
from lmcache.testing.l2_contract_damage import DamageContract
from lmcache.testing.l2_contract_listing import ListingContract
from lmcache.testing.l2_contract_room import RoomContract
from lmcache.testing.l2_storm import Storm

ODD_KEYS = [
    make_key(0, model_name="Qwen/Qwen3-0.6B"),
    make_key(1, model_name="модель/模型 🦙"),
    make_key(2, model_name="a" * 300),
    make_key(3, model_name="../../etc/passwd"),
    make_key(4, model_name="with#hash%2F?query&x=1\\ and\nnewline"),
    make_key(5, model_name="."),
    make_key(5, model_name="nul\0byte"),
    make_key(6, cache_salt="tenant-" + "é" * (CACHE_SALT_CHARS_MAX - 7)),
    make_key(7, cache_salt=".."),
    make_key(8, cache_salt="日本 *{tag}"),
    make_key(9, model_name="ж" * 2000, cache_salt="ü" * CACHE_SALT_CHARS_MAX),
    ObjectKey(b"\0" * 32, "zeros", 0, 0),
    ObjectKey(b"\xff" * 32, "ones", 0xFFFFFFFF, 0xFFFFFFFF),
]
# Pairs that a careless name would put under one.
TWINS = [
    (make_key(0, model_name="a/b"), make_key(0, model_name="a-SEP-b")),
    (make_key(0, model_name="a/b"), make_key(0, model_name="a_b")),
    (make_key(0, model_name="A"), make_key(0, model_name="a")),
    (make_key(0, model_name="a\u0301"), make_key(0, model_name="\u00e1")),
    (make_key(0, cache_salt=""), make_key(0, cache_salt="x")),
    (make_key(0, kv_rank=1), make_key(0, kv_rank=2)),
    (make_key(0), ObjectKey(make_key(0).chunk_hash, "meta/llama", 0x01000100, 1)),
]


class ObjectContract:
    """Store, look up, load, delete; what a lease protects; what is found again."""

    def test_an_object_comes_back_byte_for_byte(self, bench: Bench) -> None:
        for number, num_bytes in enumerate(bench.backend.payload_sizes):
            key, data = make_key(number), make_data(number, num_bytes)
            assert bench.store(key, data) is StoreStatus.STORED
            assert bench.adapter.lookup([key]) == [True]
            assert bench.load(key, num_bytes).data == data
            assert bytes(bench.adapter.load_whole(key)) == data
            bench.adapter.release([key])
        bench.check()

    def test_a_second_store_changes_nothing(self, bench: Bench) -> None:
        key, data = make_key(1), make_data(1)
        bench.store(key, data)
        assert bench.store(key, make_data(2)) is StoreStatus.EXISTS
        assert bench.load(key, len(data)).data == data
        assert bench.backend.num_objects() == 1

    def test_the_source_may_change_after_the_store(self, bench: Bench) -> None:
        key, data = make_key(1), bytearray(make_data(1))
        bench.adapter.store(key, Source(memoryview(data), bench.backend.layout))
        before = bytes(data)
        data[:] = bytes(len(data))
        assert bench.load(key, len(before)).data == before

    @pytest.mark.parametrize("num_intact", [0, 1])
    def test_a_source_taken_back_leaves_nothing(self, bench: Bench, num_intact: int) -> None:
        answers = [True] * num_intact
        key, data = make_key(1), bytearray(make_data(1))

        def is_intact() -> bool:
            """From some call on it says no, and others have written there."""
            if answers:
                return answers.pop()
            data[:] = bytes(len(data))
            return False

        status = bench.adapter.store(key, Source(memoryview(data), bench.backend.layout, is_intact))
        if status is StoreStatus.STORED:  # it had made its own copy by then
            assert num_intact > 0
            assert bench.load(key, len(data)).data == make_data(1)
            return
        assert status is StoreStatus.GONE
        assert not bench.is_held(key)
        assert bench.backend.num_objects() == 0
        assert bench.adapter.usage().total_bytes_used == 0
        assert bench.store(key, make_data(1)) is StoreStatus.STORED
        bench.check()

    def test_what_was_never_stored_is_absent(self, bench: Bench) -> None:
        held = make_key(1)
        bench.store(held, make_data(1))
        assert bench.adapter.lookup([make_key(2), held, make_key(3)]) == [False, True, False]
        assert bench.adapter.lookup([]) == []
        with pytest.raises(ObjectMissingError):
            bench.load(make_key(2), 4096)
        with pytest.raises(ObjectMissingError):
            bench.adapter.load_whole(make_key(2))

    def test_might_hold_never_denies_what_is_held(self, bench: Bench) -> None:
        bench.store(make_key(1), make_data(1))
        assert bench.adapter.might_hold(make_key(1))

    def test_a_lease_protects_from_delete(self, bench: Bench) -> None:
        leased, free, absent = make_key(1), make_key(2), make_key(3)
        bench.store(leased, make_data(1))
        bench.store(free, make_data(2))
        bench.adapter.lookup([leased])
        answer = bench.adapter.delete([leased, free, absent, free])
        assert (answer.deleted, answer.leased, answer.num_absent) == ([free], [leased], 1)
        assert bench.load(leased, 4096).data == make_data(1)
        assert bench.backend.content(free) is None
        bench.adapter.release([leased])
        assert bench.adapter.delete([leased]).deleted == [leased]
        assert bench.backend.num_objects() == 0

    def test_leases_are_counted(self, bench: Bench) -> None:
        key = make_key(1)
        bench.store(key, make_data(1))
        bench.adapter.lookup([key])
        bench.adapter.lookup([key])
        bench.adapter.release([key])
        assert bench.adapter.delete([key]).leased == [key]
        bench.adapter.release([key])
        bench.adapter.release([key, make_key(2)])  # one too many is ignored, and so is an unknown key
        assert bench.adapter.delete([key]).deleted == [key]

    def test_a_lease_ends_by_itself(self, bench: Bench) -> None:
        key = make_key(1)
        bench.store(key, make_data(1))
        bench.adapter.lookup([key])
        bench.clock.now_s += LEASE_TTL_S - 1
        assert bench.adapter.expire_leases() == 0
        assert bench.adapter.delete([key]).leased == [key]
        bench.clock.now_s += 1
        assert bench.adapter.expire_leases() == 1
        assert bench.adapter.delete([key]).deleted == [key]

    def test_a_deleted_object_can_be_stored_again(self, bench: Bench) -> None:
        key = make_key(1)
        for number in range(3):
            assert bench.store(key, make_data(number)) is StoreStatus.STORED
            assert bench.load(key, 4096).data == make_data(number)
            assert bench.adapter.delete([key]).deleted == [key]
            assert not bench.is_held(key)
        bench.check()

    @pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
    def test_odd_keys(self, bench: Bench, key: ObjectKey) -> None:
        data = make_data(1)
        assert bench.store(key, data) is StoreStatus.STORED
        if bench.backend.survives_restart:
            bench.reopen()
        assert bench.is_held(key)
        assert bench.load(key, len(data)).data == data
        if bench.adapter.supports_listing:
            assert [listed for listed, _ in bench.listed(key.model_name)] == [key]
        assert bench.adapter.delete([key]).deleted == [key]
        assert bench.backend.num_objects() == 0

    @pytest.mark.parametrize(("first", "second"), TWINS, ids=range(len(TWINS)))
    def test_keys_that_resemble_each_other_are_two(self, bench: Bench, first: ObjectKey, second: ObjectKey) -> None:
        bench.store(first, make_data(1))
        assert not bench.is_held(second)
        bench.store(second, make_data(2))
        assert bench.load(first, 4096).data == make_data(1)
        assert bench.load(second, 4096).data == make_data(2)

    @pytest.mark.parametrize("digest", [b"", b"short", bytes(33)])
    def test_a_hash_of_another_length_is_refused(self, bench: Bench, digest: bytes) -> None:
        key = ObjectKey(digest, "model", 0)
        with pytest.raises(KeyFormatError, match="32 bytes"):
            bench.store(key, make_data(1))
        assert bench.adapter.lookup([key]) == [False]
        assert bench.adapter.delete([key]).num_absent == 1

    def test_a_later_adapter_finds_the_objects(self, bench: Bench) -> None:
        held = [make_key(1), make_key(2, cache_salt="tenant")]
        for number, key in enumerate(held):
            bench.store(key, make_data(number))
        usage = bench.adapter.usage()
        bench.reopen()
        is_found = bench.backend.survives_restart
        assert bench.adapter.lookup(held) == [is_found] * 2
        if is_found:
            assert [bench.load(key, 4096).data for key in held] == [make_data(0), make_data(1)]
            assert bench.adapter.usage() == usage
            assert bench.store(held[0], make_data(3)) is StoreStatus.EXISTS
        bench.check()

    def test_what_is_not_persistent_ends_with_the_adapter(self, bench: Bench) -> None:
        bench.reopen(is_persistent=False)
        keys = [make_key(number) for number in range(3)]
        for number, key in enumerate(keys):
            bench.store(key, make_data(number))
        bench.adapter.lookup(keys[:1])
        bench.reopen()
        assert bench.backend.num_objects() == 0
        assert bench.adapter.lookup(keys) == [False] * 3

    def test_close_twice(self, bench: Bench) -> None:
        bench.adapter.close()
        bench.adapter.close()

    def test_an_adapter_that_was_never_opened_can_be_closed(self, bench: Bench) -> None:
        bench.adapter.close()
        bench.make().close()

    def test_two_servers_share_what_the_backend_holds(self, bench: Bench) -> None:
        other = bench.make(boot_id=2)
        try:
            if not getattr(other, "is_shared", False):
                pytest.skip("one server alone may use this backend at a time")
            other.open()
            key = make_key(1)
            bench.store(key, make_data(1))
            assert other.lookup([key]) == [True]
            assert bytes(other.load_whole(key)) == make_data(1)
            other.release([key])
            assert other.delete([key]).deleted == [key]
            with pytest.raises(ObjectMissingError):
                bench.load(key, 4096)
            assert not bench.is_held(key)
        finally:
            other.close()

    def test_many_threads(self, bench: Bench) -> None:
        storm = Storm(bench)
        storm.run()
        assert storm.failures == []
        bench.check()
        held = [key for key in storm.keys if bench.is_held(key)]
        assert bench.adapter.usage().total_bytes_used == sum(map(bench.backend.stored_bytes, held))
        assert bench.backend.num_objects() == len(held)


class L2AdapterContract(ObjectContract, DamageContract, RoomContract, ListingContract):
    """Subclass it in a test file and override `backend`."""

    @pytest.fixture
    def backend(self) -> L2Backend | Iterator[L2Backend]:
        raise NotImplementedError("override the fixture `backend`")

    @pytest.fixture
    def bench(self, backend: L2Backend) -> Iterator[Bench]:
        bench = Bench(backend)
        yield bench
        bench.adapter.close()
        backend.close()
