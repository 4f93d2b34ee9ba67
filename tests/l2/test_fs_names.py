"""File names of objects: the documented form, what replaces it where it cannot be, and what is foreign."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.keys import ObjectKey
from lmcache.l2.fs.names import NameReader, file_name, is_hashed, shard_name, shard_of

DIGEST = bytes(range(32))
_texts = st.text(st.characters(codec="utf-8", exclude_characters="@"), min_size=1, max_size=300)
_salts = st.text(st.characters(codec="utf-8", exclude_characters="@/\\\0"), max_size=128)
_keys = st.builds(
    ObjectKey,
    st.binary(min_size=32, max_size=32),
    _texts | st.sampled_from(["a/b", "a-SEP-b", "a-SEP/b", "a/SEP-b", "a-SEP-SEP-b", "a//b"]),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    _salts,
)


def test_the_documented_name() -> None:
    key = ObjectKey(bytes.fromhex("01ab"), "org/m", 0x02010201, 10, "u1")
    assert file_name(key) == b"org-SEP-m@0x02010201@a@01ab@u1.data"
    assert shard_name(shard_of(key)) == b"01"


def test_without_a_salt_there_is_no_last_field() -> None:
    assert file_name(ObjectKey(b"\xff", "m", 1)) == b"m@0x00000001@0@ff.data"


@pytest.mark.parametrize(
    "model_name", ["a" * 300, "ж" * 100, "a-SEP-b", "a-SEP/b", "nul\0"], ids=["long", "long_utf8", "sep", "seps", "nul"]
)
def test_what_does_not_fit_or_come_back_is_hashed(model_name: str) -> None:
    name = file_name(ObjectKey(DIGEST, model_name, 1))
    assert is_hashed(name)
    assert len(name) == 64 + len(".data")


def test_the_longest_plain_name_is_not_hashed() -> None:
    rest = len(file_name(ObjectKey(DIGEST, "m", 1))) - 1
    assert len(file_name(ObjectKey(DIGEST, "m" * (255 - rest), 1))) == 255
    assert not is_hashed(file_name(ObjectKey(DIGEST, "m" * (255 - rest), 1)))
    assert is_hashed(file_name(ObjectKey(DIGEST, "m" * (256 - rest), 1)))


@given(_keys)
def test_every_name_can_be_a_file_and_comes_back(key: ObjectKey) -> None:
    name = file_name(key)
    assert len(name) <= 255
    assert b"/" not in name
    assert b"\0" not in name
    found = NameReader().read(name, shard_of(key))
    if is_hashed(name):
        assert found is None
    else:
        assert found is not None
        assert found[0].key(found[1]) == key


@given(_keys, _keys)
def test_two_keys_never_share_a_name(first: ObjectKey, second: ObjectKey) -> None:
    assert (file_name(first) == file_name(second)) == (first == second)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"notes.txt",
        b"model@0x01000100@0@" + DIGEST.hex().encode(),
        b"model@0x01000100@0@" + DIGEST.hex().encode() + b".tmp",
        b"model@0x01000100@0@" + DIGEST.hex().upper().encode() + b".data",
        b"model@0x01000100@00@" + DIGEST.hex().encode() + b".data",
        b"model@0x1000100@0@" + DIGEST.hex().encode() + b".data",
        b"model@0X01000100@0@" + DIGEST.hex().encode() + b".data",
        b"model@16777472@0@" + DIGEST.hex().encode() + b".data",
        b"model@0x01000100@-1@" + DIGEST.hex().encode() + b".data",
        b"model@0x01000100@0@" + DIGEST.hex().encode() + b"@.data",
        b"model@0x01000100@0@" + DIGEST.hex().encode() + b"@a@b.data",
        b"@0x01000100@0@" + DIGEST.hex().encode() + b".data",
        b"model@0x01000100@0@01ab.data",
        b"\xff\xfe@0x01000100@0@" + DIGEST.hex().encode() + b".data",
    ],
)
def test_other_names_are_foreign(name: bytes) -> None:
    assert NameReader().read(name, DIGEST[0]) is None


def test_an_object_in_the_wrong_folder_is_foreign() -> None:
    name = file_name(ObjectKey(DIGEST, "m", 1))
    assert NameReader().read(name, DIGEST[0]) is not None
    assert NameReader().read(name, DIGEST[0] + 1) is None
