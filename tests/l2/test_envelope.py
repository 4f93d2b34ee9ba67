"""The header of a stored object: what it carries, and that nothing but an intact one is taken for one."""

from __future__ import annotations

import contextlib
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError, KeyFormatError
from lmcache.l2.envelope import (
    CHECKSUM_PART_BYTES,
    HEADER_BYTES_MAX,
    PayloadChecksum,
    check_header,
    checksum,
    decode_header,
    encode_header,
    header_bytes_of,
    payload_of,
)
from lmcache.testing.l2_backend import make_data, make_key

KEY = make_key(1, "модель", "tenant")
_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@"), min_size=1, max_size=50)
_salts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@/\\\0"), max_size=50)
_keys = st.builds(
    ObjectKey, st.binary(max_size=64), _names, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), _salts
)


@given(_keys, st.integers(0, 2**63), st.integers(0, 2**64 - 1), _names, st.sampled_from([1, 8, 512, 4096]))
def test_what_is_encoded_is_decoded(key, payload_bytes, payload_xxh3, layout, align):
    content = encode_header(key, payload_bytes, payload_xxh3, layout, align)
    assert len(content) % align == 0
    assert header_bytes_of(content) == len(content)
    header = decode_header(content + b"payload")
    assert (header.key, header.payload_bytes, header.payload_xxh3) == (key, payload_bytes, payload_xxh3)
    assert (header.layout, header.header_bytes) == (layout, len(content))


def test_its_length_does_not_depend_on_the_checksum():
    assert len(encode_header(KEY, 5, 0, "layout")) == len(encode_header(KEY, 5, 2**64 - 1, "layout"))


@pytest.mark.parametrize("align", [1, 8, 4096])
def test_a_long_layout_is_cut_on_a_whole_character(align):
    content = encode_header(KEY, 5, 0, "ж" * 5000, align)
    assert set(decode_header(content).layout) == {"ж"}
    assert decode_header(encode_header(KEY, 5, 0, "a" + "ж" * 5000)).layout.startswith("aж")


def test_a_key_that_fits_no_header_is_refused():
    with pytest.raises(KeyFormatError, match=f"does not fit a header of {HEADER_BYTES_MAX}"):
        encode_header(ObjectKey(bytes(32), "🦙" * 4096, 0), 1, 0)
    with pytest.raises(KeyFormatError, match="cannot be stored"):
        encode_header(ObjectKey(bytes(32), "model", 0, 2**64), 1, 0)


@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_header(content):
    with pytest.raises(CorruptObjectError):
        decode_header(content)


@given(st.data())
def test_any_change_is_noticed(data):
    content = bytearray(encode_header(KEY, 5, 6, "layout"))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptObjectError):
        decode_header(content)


@given(st.data())
def test_a_torn_header_is_noticed(data):
    content = encode_header(KEY, 5, 6, "layout")
    with pytest.raises(CorruptObjectError):
        decode_header(content[: data.draw(st.integers(0, len(content) - 1))])


@given(st.data())
def test_a_forged_header_is_never_more_than_corrupt(data):
    """With a right checksum over wrong fields: lengths beyond the end, names that are no text, forbidden salts."""
    content = bytearray(encode_header(KEY, 5, 6, "layout"))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(8, len(content) - 9))
        content[position] = data.draw(st.integers(0, 255))
    content[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(content[:-8])))
    with contextlib.suppress(CorruptObjectError):
        decode_header(content)


def test_another_version_is_told_as_such():
    content = bytearray(encode_header(KEY, 5, 6))
    content[6] += 1
    with pytest.raises(CorruptObjectError, match="another version of the format"):
        decode_header(content)


def test_a_header_of_another_object_is_noticed():
    header = decode_header(encode_header(KEY, 5, 6))
    check_header(header, KEY, 5)
    with pytest.raises(CorruptObjectError, match="another key"):
        check_header(header, make_key(2), 5)
    with pytest.raises(CorruptObjectError, match="5 bytes where 6 were expected"):
        check_header(header, KEY, 6)


@pytest.mark.parametrize("num_bytes", [0, 1, CHECKSUM_PART_BYTES, CHECKSUM_PART_BYTES + 1, 3 * CHECKSUM_PART_BYTES])
@pytest.mark.parametrize("parts_a_piece", [1, 2])
def test_a_checksum_does_not_depend_on_the_pieces(num_bytes, parts_a_piece):
    data = make_data(1, num_bytes)
    running = PayloadChecksum()
    piece_bytes = parts_a_piece * CHECKSUM_PART_BYTES
    for start in range(0, num_bytes, piece_bytes):
        running.add(data[start : start + piece_bytes])
    assert running.value() == checksum(data)


def test_a_checksum_depends_on_every_part_and_on_their_order():
    parts = [make_data(number, CHECKSUM_PART_BYTES) for number in range(2)]
    other = make_data(2, CHECKSUM_PART_BYTES)
    seen = {checksum(b"".join(pieces)) for pieces in (parts, parts[::-1], parts[:1], [*parts, b"x"], [parts[0], other])}
    assert len(seen) == 5


def test_the_payload_of_a_whole_object():
    data = make_data(1, 100)
    content = encode_header(KEY, 100, checksum(data)) + data
    assert payload_of(memoryview(content), KEY) == data
    assert payload_of(memoryview(content), KEY, 100) == data
    for wrong in (content[:-1], content + b"x", content[:-1] + bytes([content[-1] ^ 1])):
        with pytest.raises(CorruptObjectError):
            payload_of(memoryview(wrong), KEY)
    with pytest.raises(CorruptObjectError):
        payload_of(memoryview(content), KEY, 99)
