"""Frames: a fixed header and one message. The header names protocol version, request, boot and client.

    request: magic, version, request number, boot id the client knows (0: none), client uid
    reply:   magic, version, request number, boot id of the server, 0

Request number 0 is the server speaking first (a checksum query).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from lmcache.errors import ProtocolError
from lmcache.protocol.messages import PROTOCOL_VERSION, Reply, Request

T = TypeVar("T")

_HEADER = struct.Struct("<HHIQQQ")
_MAGIC = 0x4B4C
FRAME_BYTES_MAX = 16 << 20

_encode = msgspec.msgpack.Encoder().encode
_decode_request: Callable[[memoryview], Request] = msgspec.msgpack.Decoder(Request).decode
_decode_reply: Callable[[memoryview], Reply] = msgspec.msgpack.Decoder(Reply).decode


class BadVersionError(ProtocolError):
    """The other side speaks another version of the protocol. `number`: which request of its that was."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


@dataclass(frozen=True, slots=True)
class Header:
    number: int
    boot_id: int
    client_uid: int


def encode_frame(number: int, boot_id: int, client_uid: int, message: msgspec.Struct) -> bytes:
    return _HEADER.pack(_MAGIC, PROTOCOL_VERSION, 0, number, boot_id, client_uid) + _encode(message)


def decode_header(frame: bytes) -> Header:
    """Raises ProtocolError for what is no frame, BadVersionError for one of another version."""
    if len(frame) < _HEADER.size:
        raise ProtocolError(f"a frame has at least {_HEADER.size} bytes (got {len(frame)})")
    if len(frame) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame has at most {FRAME_BYTES_MAX} bytes (got {len(frame)})")
    magic, version, _, number, boot_id, client_uid = _HEADER.unpack_from(frame)
    if magic != _MAGIC:
        raise ProtocolError("this is not an lmcache frame: is another program using this port?")
    if version != PROTOCOL_VERSION:
        raise BadVersionError(
            f"protocol version {version} here meets version {PROTOCOL_VERSION}: "
            f"install the same lmcache release in the engine and on the server",
            number,
        )
    return Header(number, boot_id, client_uid)


def decode_request(frame: bytes) -> Request:
    return _decode(_decode_request, frame)


def decode_reply(frame: bytes) -> Reply:
    return _decode(_decode_reply, frame)


def _decode(decode: Callable[[memoryview], T], frame: bytes) -> T:
    try:
        return decode(memoryview(frame)[_HEADER.size :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"undecodable message: {error}") from error
