"""Every message survives the wire; every broken frame is a ProtocolError and nothing else."""

from __future__ import annotations

import struct
import types
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.errors import ProtocolError
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots, split_digests, split_places, split_slots
from lmcache.protocol.frames import (
    FRAME_BYTES_MAX,
    BadVersionError,
    Header,
    decode_header,
    decode_reply,
    decode_request,
    encode_frame,
)

HEADER_BYTES = 32
REQUESTS = typing.get_args(m.Request)
REPLIES = typing.get_args(m.Reply)
WORDS = st.integers(0, 2**64 - 1)
_BY_TYPE: dict[object, st.SearchStrategy[object]] = {
    float: st.floats(allow_nan=False),
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(annotation: object) -> st.SearchStrategy[object]:
    """Any value of a message's field."""
    if annotation in _BY_TYPE:
        return _BY_TYPE[annotation]
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return st.one_of(*map(values, arguments))
    assert typing.get_origin(annotation) is list, f"{annotation} has no strategy yet"
    return st.lists(values(arguments[0]), max_size=4)


def messages(kinds: typing.Iterable[type[msgspec.Struct]]) -> st.SearchStrategy[msgspec.Struct]:
    return st.one_of(
        *(st.builds(kind, **{f.name: values(f.type) for f in msgspec.structs.fields(kind)}) for kind in kinds)
    )


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@given(data=st.data(), number=st.integers(0, 2**64 - 1), boot_id=WORDS, uid=WORDS)
def test_every_request_survives_the_wire(kind, data: st.DataObject, number: int, boot_id: int, uid: int) -> None:
    message = data.draw(messages([kind]))
    frame = encode_frame(number, boot_id, uid, message)
    assert decode_header(frame) == Header(number, boot_id, uid)
    assert decode_request(frame) == message
    assert type(decode_request(frame)) is kind


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_reply_survives_the_wire(kind, data: st.DataObject) -> None:
    message = data.draw(messages([kind]))
    frame = encode_frame(1, 2, 3, message)
    assert decode_reply(frame) == message
    assert type(decode_reply(frame)) is kind


def decode_whole(frame: bytes) -> None:
    decode_header(frame)
    decode_request(frame)


@given(st.binary(max_size=200))
def test_noise_is_a_protocol_error(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_whole(noise)


@given(message=messages(REQUESTS), cut=st.integers(1, 300))
def test_a_truncated_frame_is_a_protocol_error(message: msgspec.Struct, cut: int) -> None:
    frame = encode_frame(1, 2, 3, message)
    with pytest.raises(ProtocolError):
        decode_whole(frame[: max(0, len(frame) - cut)])


@given(message=messages(REQUESTS), data=st.data())
def test_a_frame_with_changed_bytes_is_a_message_or_a_protocol_error(
    message: msgspec.Struct, data: st.DataObject
) -> None:
    frame = bytearray(encode_frame(1, 2, 3, message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_whole(bytes(frame))
    except ProtocolError:
        return
    assert isinstance(decode_request(bytes(frame)), REQUESTS)


def test_the_header_says_what_is_wrong() -> None:
    frame = encode_frame(7, 8, 9, m.Hello())
    with pytest.raises(ProtocolError, match="at least 32 bytes"):
        decode_header(frame[:31])
    with pytest.raises(ProtocolError, match="another program using this port"):
        decode_header(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with pytest.raises(ProtocolError, match="at most"):
        decode_header(frame + bytes(FRAME_BYTES_MAX))
    with pytest.raises(BadVersionError, match=r"version 9 .* version 1: install the same lmcache release"):
        decode_header(frame[:2] + struct.pack("<H", 9) + frame[4:])


@pytest.mark.parametrize("depth", [10, 100_000])
def test_a_deeply_nested_message_is_a_protocol_error(depth: int) -> None:
    with pytest.raises(ProtocolError):
        decode_request(bytes(HEADER_BYTES) + b"\x91" * depth + b"\xc0")


def test_a_reply_is_no_request() -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode_frame(1, 2, 3, m.Done(1)))


def test_fields_added_at_the_end_by_a_newer_peer_are_ignored() -> None:
    longer = msgspec.msgpack.encode(["EndSession", "r1", "added later"])
    assert decode_request(bytes(HEADER_BYTES) + longer) == m.EndSession("r1")


@given(st.lists(st.tuples(WORDS, WORDS), max_size=10))
def test_slots_survive_packing(slots: list[tuple[int, int]]) -> None:
    assert split_slots(pack_slots(slots)) == slots


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), max_size=10))
def test_places_survive_packing(places: list[tuple[int, int, int, int]]) -> None:
    blob = b"".join(struct.pack("=4Q", *place) for place in places)
    assert split_places(blob) == places


@pytest.mark.parametrize(("split", "size"), [(split_digests, 32), (split_places, 32), (split_slots, 16)])
def test_blobs_that_are_cut_short_are_refused(split, size: int) -> None:
    assert split(b"") == []
    assert len(split(bytes(3 * size))) == 3
    for length in (1, size - 1, size + 1):
        with pytest.raises(ProtocolError, match=f"{size} bytes each"):
            split(bytes(length))
