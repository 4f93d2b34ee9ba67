"""The part of the L2 contract about objects that change, vanish or rot behind the adapter's back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lmcache.errors import CorruptObjectError, L2Error, ObjectMissingError
from lmcache.l2.base import StoreStatus
from lmcache.testing.l2_backend import Bench, make_data, make_key

NUM_BYTES = 4096


def _flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "last_byte": lambda content: _flip(content, -1),
    "payload": lambda content: _flip(content, -NUM_BYTES // 2),
    "magic": lambda content: _flip(content, 0),
    "version": lambda content: _flip(content, 6),
    "header_length": lambda content: _flip(content, 8),
    "payload_length": lambda content: _flip(content, 12),
    "key_in_header": lambda content: _flip(content, 60),
    "cut_in_payload": lambda content: content[: -NUM_BYTES // 2],
    "cut_in_header": lambda content: content[:40],
    "cut_to_one_byte": lambda content: content[:1],
    "zeros": lambda content: bytes(len(content)),
    "foreign": lambda content: b"#!/bin/sh\necho hello\n" * (len(content) // 21 + 1),
    "shifted": lambda content: b"\0" + content,
}


def _load(bench: Bench, how: str) -> object:
    return bench.load(make_key(1), NUM_BYTES) if how == "load" else bench.adapter.load_whole(make_key(1))


class DamageContract:
    """Whatever is wrong with an object, it is a miss, it is removed, and it can be stored again."""

    @pytest.mark.parametrize("damage", DAMAGE)
    @pytest.mark.parametrize("how", ["load", "load_whole", "verify"])
    def test_a_damaged_object_is_a_miss(self, bench: Bench, damage: str, how: str) -> None:
        key, data = make_key(1), make_data(1, NUM_BYTES)
        bench.store(key, data)
        content = bench.backend.content(key)
        assert content is not None
        bench.backend.replace(key, DAMAGE[damage](content))
        bench.adapter.lookup([key])
        self._expect_corrupt(bench, how)
        assert not bench.is_held(key)
        assert bench.backend.content(key) is None, "what cannot be used is removed"
        assert bench.adapter.usage().total_bytes_used == 0
        assert [deleted for deleted, _ in bench.events.deleted] == [key]
        bench.check()
        bench.adapter.release([key])
        assert bench.store(key, data) is StoreStatus.STORED
        assert bench.load(key, NUM_BYTES).data == data

    def _expect_corrupt(self, bench: Bench, how: str) -> None:
        key = make_key(1)
        if how == "verify":
            assert not bench.adapter.verify(key)
            return
        with pytest.raises(CorruptObjectError):
            _load(bench, how)
        assert bench.events.accessed == []

    def test_an_empty_object_is_a_miss(self, bench: Bench) -> None:
        key, data = make_key(1), make_data(1, NUM_BYTES)
        bench.store(key, data)
        bench.backend.replace(key, b"")
        with pytest.raises(L2Error):
            bench.load(key, NUM_BYTES)
        assert not bench.is_held(key)
        assert bench.store(key, data) is StoreStatus.STORED

    def test_an_object_of_another_key_is_a_miss(self, bench: Bench) -> None:
        mine, other = make_key(1), make_key(2)
        bench.store(mine, make_data(1))
        bench.store(other, make_data(2))
        content = bench.backend.content(other)
        assert content is not None
        bench.backend.replace(mine, content)
        with pytest.raises(CorruptObjectError):
            bench.load(mine, NUM_BYTES)
        assert not bench.is_held(mine)
        assert bench.load(other, NUM_BYTES).data == make_data(2)

    @pytest.mark.parametrize("num_bytes", [NUM_BYTES - 8, NUM_BYTES + 8])
    def test_an_object_of_another_length_is_a_miss(self, bench: Bench, num_bytes: int) -> None:
        key = make_key(1)
        bench.store(key, make_data(1, num_bytes))
        with pytest.raises(CorruptObjectError):
            bench.load(key, NUM_BYTES)
        assert not bench.is_held(key)
        assert bench.backend.content(key) is None

    @pytest.mark.parametrize("how", ["load", "load_whole", "verify"])
    def test_an_object_that_vanished_is_a_miss(self, bench: Bench, how: str) -> None:
        key = make_key(1)
        bench.store(key, make_data(1))
        size = bench.adapter.usage().total_bytes_used
        bench.backend.remove(key)
        if how == "verify":
            assert bench.adapter.verify(key), "an object that is absent is not damaged"
        else:
            with pytest.raises(ObjectMissingError):
                _load(bench, how)
        assert not bench.is_held(key)
        assert bench.adapter.usage().total_bytes_used == 0
        assert bench.events.deleted == [(key, size)]
        assert bench.store(key, make_data(1)) is StoreStatus.STORED
        bench.check()

    def test_an_object_that_vanished_can_be_deleted(self, bench: Bench) -> None:
        key = make_key(1)
        bench.store(key, make_data(1))
        bench.backend.remove(key)
        bench.adapter.delete([key])
        assert not bench.is_held(key)
        assert bench.adapter.usage().total_bytes_used == 0
        bench.check()

    def test_a_whole_object_verifies(self, bench: Bench) -> None:
        bench.store(make_key(1), make_data(1))
        assert bench.adapter.verify(make_key(1))
        assert bench.adapter.verify(make_key(2)), "absent"
        assert bench.is_held(make_key(1))

    @pytest.mark.parametrize("damage", ["last_byte", "magic", "cut_in_header", "foreign", "zeros"])
    def test_damage_while_no_adapter_looks(self, bench: Bench, damage: str) -> None:
        if not bench.backend.survives_restart:
            pytest.skip("nothing is left to be damaged")
        damaged, whole = make_key(1), make_key(2)
        bench.store(damaged, make_data(1))
        bench.store(whole, make_data(2))
        content = bench.backend.content(damaged)
        assert content is not None
        bench.adapter.close()
        bench.backend.replace(damaged, DAMAGE[damage](content))
        bench.open()
        if bench.is_held(damaged):
            with pytest.raises(CorruptObjectError):
                bench.load(damaged, NUM_BYTES)
        assert not bench.is_held(damaged)
        assert bench.load(whole, NUM_BYTES).data == make_data(2)
        assert bench.store(damaged, make_data(1)) is StoreStatus.STORED
        assert bench.load(damaged, NUM_BYTES).data == make_data(1)
