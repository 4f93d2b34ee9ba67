"""File names of objects, both ways. A name is a whole key, or a hash where the key would not fit or not come back.

Names are bytes in UTF-8, whatever the locale says. Files lie in folders named by the first
byte of the chunk's hash.
"""

from __future__ import annotations

import hashlib
import re
from binascii import hexlify, unhexlify

from lmcache.core.keys import ObjectKey
from lmcache.errors import KeyFormatError
from lmcache.l2.digest_table import DIGEST_BYTES
from lmcache.l2.object_batch import Space

NUM_SHARDS = 256
_SUFFIX = b".data"
_SLASH = "-SEP-"
_NAME_BYTES_MAX = 255
_DIGEST_CHARACTERS = 2 * DIGEST_BYTES
_HASHED = re.compile(rb"[0-9a-f]{64}\.data")


def shard_name(shard: int) -> bytes:
    return b"%02x" % shard


def shard_of(key: ObjectKey) -> int:
    return key.chunk_hash[0] if key.chunk_hash else 0


def file_name(key: ObjectKey) -> bytes:
    """`<model>@0x<kv_rank>@<group>@<hash>[@<salt>].data`, all numbers in hex."""
    salt = f"@{key.cache_salt}" if key.cache_salt else ""
    rest = f"@0x{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}{salt}"
    model = key.model_name.replace("/", _SLASH)
    name = (model + rest).encode() + _SUFFIX
    comes_back = model.replace(_SLASH, "/") == key.model_name and "\0" not in model
    if comes_back and len(name) <= _NAME_BYTES_MAX:
        return name
    return hashlib.sha256((key.model_name + rest).encode()).hexdigest().encode() + _SUFFIX


def is_hashed(name: bytes) -> bool:
    """Whether only the file's header can tell the key."""
    return _HASHED.fullmatch(name) is not None


class NameReader:
    """Reads names in bulk: all but the hash is the same in most of them. Not thread-safe."""

    def __init__(self) -> None:
        self._spaces: dict[tuple[bytes, bytes], Space | None] = {}

    def read(self, name: bytes, shard: int) -> tuple[Space, bytes] | None:
        """What and which digest this names; None: it is not the name of an object in this shard."""
        parts = name.split(b"@", 3)
        if len(parts) < 4:
            return None
        rest = parts[3]
        digest_hex, ending = rest[:_DIGEST_CHARACTERS], rest[_DIGEST_CHARACTERS:]
        try:
            digest = unhexlify(digest_hex)
        except ValueError:
            return None
        # Only the spelling that we write ourselves: no key may have two names.
        if len(digest) != DIGEST_BYTES or digest[0] != shard or hexlify(digest) != digest_hex:
            return None
        place = (name[: -len(rest)], ending)
        space = self._spaces.get(place)
        if space is None:
            if place not in self._spaces:
                self._spaces[place] = _space_of(name, parts[:3], ending, digest)
            space = self._spaces[place]
        return None if space is None else (space, digest)


def _space_of(name: bytes, parts: list[bytes], ending: bytes, digest: bytes) -> Space | None:
    salt = ending.removesuffix(_SUFFIX)
    try:
        model, rank, group = (part.decode() for part in parts)
        space = Space(model.replace(_SLASH, "/"), int(rank, 16), int(group, 16), salt[1:].decode())
        return space if file_name(space.key(digest)) == name else None
    except (KeyFormatError, ValueError):
        return None
