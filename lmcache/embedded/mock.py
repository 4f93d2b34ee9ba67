"""Storing and loading tokens that no request has: for operators who try out an engine while it serves.

Their chunks hash from a root of their own, so nobody but this finds them. Knows no HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from blake3 import blake3

from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt, RetrievePart, StoreJob
from lmcache.errors import BlockRangeError
from lmcache.kv_copy.base import KVCopier
from lmcache.kv_copy.cpu import CpuCopier

# A request's root is a hash of what its engine is; none of those texts is this one. To meet, the hash must collide.
MOCK_ROOT = blake3(b"lmcache: tokens of operators, and of no request").digest()
_LOOKUP_ID = "cache_api_retrieve"


def scratch_copier(layout: KVLayout, chunk_size: int) -> KVCopier:
    """Over pages of one chunk that belong to nobody else, laid out as the rank's."""
    num_blocks = layout.blocks_per_chunk(chunk_size)
    return CpuCopier(
        [np.zeros((group.num_layers, num_blocks, group.page_bytes), dtype=np.uint8) for group in layout.groups]
    )


class MockTokens:
    """Any thread, one call at a time. `store` and `load_part` copy; `first_block_of` says where chunk i is loaded."""

    def __init__(
        self,
        layout: KVLayout,
        chunk_size: int,
        algorithm: str,
        store: Callable[[StoreJob], tuple[bytes, ...]],
        lookup: Callable[[str, Prompt], int],
        load_part: Callable[[RetrievePart], str],
        release: Callable[[list[str]], int],
        first_block_of: Callable[[int], int],
    ) -> None:
        self._layout = layout
        self._chunk_size = chunk_size
        self._chunk_blocks = layout.blocks_per_chunk(chunk_size)
        self._algorithm = algorithm
        self._store = store
        self._lookup = lookup
        self._load_part = load_part
        self._release = release
        self._first_block_of = first_block_of
        self._mutex = threading.Lock()

    def store(self, token_ids: Sequence[int]) -> int:
        """Store blocks 0... as if they held these tokens; chunks that are new. Raises LMCacheError."""
        digests = self._digests(token_ids)
        num_blocks = len(digests) * self._chunk_blocks
        if num_blocks > self._layout.num_blocks:
            raise BlockRangeError(
                f"{len(token_ids)} tokens need {num_blocks} blocks, and the KV cache has {self._layout.num_blocks}: "
                f"give at most {self._layout.num_blocks * self._layout.block_size} tokens"
            )
        rows = tuple(self._blocks(chunk * self._chunk_blocks) for chunk in range(len(digests)))
        with self._mutex:
            return len(self._store(StoreJob(MOCK_ROOT, "", digests, rows)))

    def retrieve(self, token_ids: Sequence[int]) -> int:
        """Load what was stored; leading tokens of it. Raises LMCacheError."""
        digests = self._digests(token_ids)
        with self._mutex:
            try:
                num_found = self._lookup(_LOOKUP_ID, Prompt(MOCK_ROOT, "", digests))
                for chunk, digest in enumerate(digests[:num_found]):
                    if self._load_part(RetrievePart(digest, 0, self._blocks(self._first_block_of(chunk)))):
                        return chunk * self._chunk_size
                return num_found * self._chunk_size
            finally:
                self._release([_LOOKUP_ID])

    def _digests(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Of whole chunks alone. Raises TokenRangeError."""
        return tuple(chunk_digests(make_algorithm(self._algorithm), MOCK_ROOT, token_ids, self._chunk_size))

    def _blocks(self, first: int) -> tuple[int, ...]:
        return tuple(range(first, first + self._chunk_blocks))
