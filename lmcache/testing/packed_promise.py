"""A promise as bytes, so that one engine can load what another looked up."""

from __future__ import annotations

import msgspec

from lmcache.integration.mp.jobs import PromisedChunk
from lmcache.integration.mp.lookups import Promise


class _PackedPromise(msgspec.Struct):
    boot_id: int
    pool_id: bytes
    chunk_size: int
    chunks: list[list[tuple[bytes, int, int, int, int]]]


def pack_promise(promise: Promise) -> bytes:
    chunks = [
        [(place.digest, place.slot, place.slot_word, place.offset, place.length) for place in ranks]
        for ranks in promise.chunks
    ]
    return msgspec.msgpack.encode(_PackedPromise(promise.boot_id, promise.pool_id, promise.chunk_size, chunks))


def unpack_promise(blob: bytes) -> Promise:
    packed = msgspec.msgpack.decode(blob, type=_PackedPromise)
    chunks = tuple(tuple(PromisedChunk(*place) for place in ranks) for ranks in packed.chunks)
    return Promise(packed.boot_id, packed.pool_id, packed.chunk_size, chunks)
