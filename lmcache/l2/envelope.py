"""The header of a stored object: whose bytes these are, how many, and their checksum.

The same on every backend, so that a file, an S3 object and a DAX slot can be told apart
from foreign or torn bytes, and an object whose name was hashed still says its key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import align_up
from lmcache.errors import CorruptObjectError, KeyFormatError

MAGIC = b"LMCOBJ"
VERSION = 1
# magic, version, header bytes, payload bytes, payload xxh3, kv_rank, group, lengths of hash, model, salt, layout
_FIXED = struct.Struct("<6sHIQQIQHHHH")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES_MAX = 16384
CHECKSUM_PART_BYTES = 512 << 10
_LAYOUT_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Header:
    key: ObjectKey
    payload_bytes: int
    payload_xxh3: int
    layout: str
    header_bytes: int


class PayloadChecksum:
    """The checksum of a payload that comes in pieces: xxh3 over the xxh3 of each part of `CHECKSUM_PART_BYTES`.

    So a reader can sum a part while it is in the processor's cache, at full speed: xxh3 itself is
    slower where it has to go on from piece to piece.
    """

    def __init__(self) -> None:
        self._sums: list[bytes] = []

    def add(self, piece: memoryview | bytes | bytearray) -> None:
        """All pieces but the last have a whole number of parts. Releases the interpreter while it works."""
        view = memoryview(piece)
        for start in range(0, len(view), CHECKSUM_PART_BYTES):
            self._sums.append(xxhash.xxh3_64_digest(view[start : start + CHECKSUM_PART_BYTES]))

    def value(self) -> int:
        return xxhash.xxh3_64_intdigest(b"".join(self._sums))


def checksum(data: memoryview | bytes | bytearray) -> int:
    """The checksum of a whole payload."""
    running = PayloadChecksum()
    running.add(data)
    return running.value()


def encode_header(key: ObjectKey, payload_bytes: int, payload_xxh3: int, layout: str = "", align: int = 8) -> bytes:
    """A header whose length is a multiple of `align`, padded with zeros; its last 8 bytes are its own xxh3."""
    short_layout = layout.encode()[:_LAYOUT_BYTES_MAX].decode(errors="ignore").encode()
    names = [key.chunk_hash, key.model_name.encode(), key.cache_salt.encode(), short_layout]
    size = align_up(_FIXED.size + sum(map(len, names)) + _CHECKSUM.size, align)
    if size > HEADER_BYTES_MAX:
        raise KeyFormatError(f"a key of {size} bytes does not fit a header of {HEADER_BYTES_MAX}")
    try:
        fixed = _FIXED.pack(
            MAGIC, VERSION, size, payload_bytes, payload_xxh3, key.kv_rank, key.object_group_id, *map(len, names)
        )
    except struct.error as error:
        raise KeyFormatError(f"this key cannot be stored: {error}") from error
    body = (fixed + b"".join(names)).ljust(size - _CHECKSUM.size, b"\0")
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def header_bytes_of(start: bytes | memoryview) -> int:
    """The whole header's length, from its first bytes. Raises CorruptObjectError if this is no header."""
    if len(start) < _FIXED.size:
        raise CorruptObjectError("too short for a header")
    magic, version, size = _FIXED.unpack_from(start)[:3]
    if magic != MAGIC:
        raise CorruptObjectError("not an object of ours")
    if version != VERSION:
        raise CorruptObjectError(f"written by another version of the format ({version})")
    if not _FIXED.size + _CHECKSUM.size <= size <= HEADER_BYTES_MAX:
        raise CorruptObjectError("its header has an impossible length")
    return int(size)


def decode_header(content: bytes | memoryview) -> Header:
    """The header at the start of `content`. Raises CorruptObjectError."""
    size = header_bytes_of(content)
    if len(content) < size:
        raise CorruptObjectError("its header is torn")
    body = bytes(content[: size - _CHECKSUM.size])
    (expected,) = _CHECKSUM.unpack_from(content, size - _CHECKSUM.size)
    if xxhash.xxh3_64_intdigest(body) != expected:
        raise CorruptObjectError("its header is damaged")
    _, _, _, payload_bytes, payload_xxh3, kv_rank, group, *lengths = _FIXED.unpack_from(body)
    names, start = [], _FIXED.size
    for length in lengths:
        names.append(body[start : start + length])
        start += length
    try:
        key = ObjectKey(names[0], names[1].decode(), kv_rank, group, names[2].decode())
        layout = names[3].decode()
    except (KeyFormatError, UnicodeDecodeError) as error:
        raise CorruptObjectError(f"its header names no valid key: {error}") from error
    return Header(key, payload_bytes, payload_xxh3, layout, size)


def check_header(header: Header, key: ObjectKey, payload_bytes: int) -> None:
    """Raise CorruptObjectError unless this header is that of `key` with that many bytes."""
    if header.key != key:
        raise CorruptObjectError("it belongs to another key")
    if header.payload_bytes != payload_bytes:
        raise CorruptObjectError(f"it has {header.payload_bytes} bytes where {payload_bytes} were expected")


def check_payload(header: Header, payload: memoryview | bytes | bytearray) -> None:
    if checksum(payload) != header.payload_xxh3:
        raise CorruptObjectError("its checksum does not match")


def payload_of(content: memoryview, key: ObjectKey, payload_bytes: int | None = None) -> memoryview:
    """The payload in the whole content of an object, headers and payload checked. Raises CorruptObjectError."""
    header = decode_header(content)
    payload = content[header.header_bytes :]
    check_header(header, key, len(payload) if payload_bytes is None else payload_bytes)
    check_payload(header, payload)
    return payload
