"""Names of objects in a bucket, and page tokens made of them: both ways, for any key."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.keys import ObjectKey
from lmcache.errors import PageTokenError
from lmcache.l2.object_names import LONG_NAMES, key_of_name, object_name
from lmcache.l2.page_tokens import decode_name_token, encode_name_token

HASH = bytes.fromhex("01ab" * 16)
text = st.text(st.characters(codec="utf-8", exclude_characters="@"), min_size=1, max_size=40)
salts = st.text(st.characters(codec="utf-8", exclude_characters="@/\\\0"), max_size=40)
keys = st.builds(
    ObjectKey, st.binary(min_size=32, max_size=32), text, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), salts
)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ObjectKey(HASH, "org/m", 0x02010201, 10, "u1"), f"org/m@02010201@a@{HASH.hex()}@u1"),
        (ObjectKey(HASH, "org/m", 0x01000100), f"org/m@01000100@0@{HASH.hex()}"),
        (ObjectKey(HASH, "модель v2 #1", 1), f"модель v2 #1@00000001@0@{HASH.hex()}"),
        (ObjectKey(HASH, "../a//b", 1), f"%2E%2E/a/%2Fb@00000001@0@{HASH.hex()}"),
        (ObjectKey(HASH, "50%\n", 1, 0, " x "), f"50%25%0A@00000001@0@{HASH.hex()}@%20x%20"),
    ],
)
def test_names(key, name):
    assert object_name(key) == name
    assert key_of_name(name) == key


@given(key=keys)
def test_every_name_leads_back_to_its_key(key):
    name = object_name(key)
    assert key_of_name(name) == key
    parts = name.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert not any(ord(character) < 32 for character in name)


@given(first=keys, second=keys)
def test_two_keys_have_two_names(first, second):
    assert (object_name(first) == object_name(second)) == (first == second)


def test_a_long_name_is_a_hash():
    key = ObjectKey(HASH, "ж" * 600, 1)
    name = object_name(key)
    assert name.startswith(LONG_NAMES)
    assert len(name) < 100
    assert key_of_name(name) is None
    assert object_name(ObjectKey(HASH, "ж" * 600, 2)) != name
    assert object_name(key, 2000).startswith("жж")


@pytest.mark.parametrize(
    "name",
    [
        "", "readme.md", "org/m@02010201@a", f"@02010201@a@{HASH.hex()}", f"org/m@02010201@A@{HASH.hex()}",
        f"org/m@2010201@a@{HASH.hex()}", f"org/m@02010201@0a@{HASH.hex()}", f"org/m@02010201@a@{HASH.hex()}@",
        f"org/m@02010201@a@{HASH.hex()[2:]}", f"org/m@02010201@a@{HASH.hex().upper()}", f"%41@00000001@0@{HASH.hex()}",
        f"org/m@02010201@a@{HASH.hex()}@u1@x", f"%@00000001@0@{HASH.hex()}", f"m@00000001@0@{HASH.hex()}@%2F",
        f"%FF@00000001@0@{HASH.hex()}",
    ],
)  # fmt: skip
def test_foreign_names(name):
    assert key_of_name(name) is None


@given(name=st.text(st.characters(codec="utf-8")))
def test_tokens_come_back(name):
    assert decode_name_token(encode_name_token(name)) == name


@given(name=st.text(st.characters(codec="utf-8"), min_size=1), position=st.integers(0), bit=st.integers(0, 7))
def test_a_changed_token_is_refused(name, position, bit):
    content = bytearray(base64.urlsafe_b64decode(encode_name_token(name)))
    content[position % len(content)] ^= 1 << bit
    with pytest.raises(PageTokenError):
        decode_name_token(base64.urlsafe_b64encode(content).decode())
