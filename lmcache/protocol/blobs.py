"""Digests and places packed into one bytes object each, as the messages carry them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from lmcache.core.hashing import DIGEST_BYTES
from lmcache.errors import ProtocolError

_PLACE_WORDS = 4
_SHORT_PLACE_WORDS = 2


def split_digests(blob: bytes) -> list[bytes]:
    if len(blob) % DIGEST_BYTES:
        raise ProtocolError(f"digests come as {DIGEST_BYTES} bytes each (got {len(blob)} bytes)")
    return [blob[start : start + DIGEST_BYTES] for start in range(0, len(blob), DIGEST_BYTES)]


def split_places(blob: bytes) -> list[tuple[int, int, int, int]]:
    """(slot, slot word, offset, length) tuples."""
    words = _words(blob, _PLACE_WORDS)
    return list(zip(words[0::4], words[1::4], words[2::4], words[3::4], strict=True))


def pack_slots(slots: Iterable[tuple[int, int]]) -> bytes:
    """(slot, slot word) pairs, as commit and abort name them."""
    return array("Q", [word for pair in slots for word in pair]).tobytes()


def split_slots(blob: bytes) -> list[tuple[int, int]]:
    words = _words(blob, _SHORT_PLACE_WORDS)
    return list(zip(words[0::2], words[1::2], strict=True))


def _words(blob: bytes, num_words: int) -> Sequence[int]:
    if len(blob) % (8 * num_words):
        raise ProtocolError(f"places come as {8 * num_words} bytes each (got {len(blob)} bytes)")
    words = array("Q")
    words.frombytes(blob)
    return words
