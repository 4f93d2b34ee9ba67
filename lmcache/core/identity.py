"""The root of an engine's hash chains: two KV states that could differ never share it.

A root is made from what decides the values (model facts) and what decides the bytes (the
layout of every rank), and, once an engine was reset, from a random epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from blake3 import blake3

from lmcache.core.hashing import ChunkHashAlgorithm
from lmcache.core.layout import KVLayout

_TAG = b"lmcache-root-1"
_SHORT_CHARACTERS = 12


def canonical_bytes(value: object) -> bytes:
    """One byte string per plain value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def short_digest(value: object) -> str:
    """Tells plain values apart where they are not to be shown. Not as long as to stand for them in a key."""
    return blake3(canonical_bytes(value)).hexdigest()[:_SHORT_CHARACTERS]


def make_root(
    algorithm: ChunkHashAlgorithm,
    model_facts: Mapping[str, object],
    layouts: Sequence[KVLayout],
    chunk_size: int,
    epoch: bytes = b"",
) -> bytes:
    """Root of one engine: `H(none_hash, identity)`; `layouts` in rank order."""
    identity = canonical_bytes(
        {
            "model": dict(model_facts),
            "ranks": [layout.identity() for layout in layouts],
            "chunk_size": chunk_size,
            "epoch": epoch.hex(),
        }
    )
    return algorithm.next_digest(algorithm.none_hash(), b"", _TAG + identity)
