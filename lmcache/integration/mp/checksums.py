"""Checksums of engine blocks as documented: one MD5 per chunk, or per layer and chunk. For any engine.

Knows no tensor: an engine says how the bytes of its blocks are read, layer by layer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence

from lmcache.errors import DeadlineExceededError, LMCacheError
from lmcache.protocol.messages import ChecksumQuery, ChecksumResult

# The bytes of these blocks of one layer, in this order, in pieces.
ReadBlocks = Callable[[Sequence[int]], Iterable[bytes | memoryview]]


def block_digests(
    layers: Sequence[ReadBlocks],
    block_ids: Sequence[int],
    chunk_size: int,
    layerwise: bool,
    check_time: Callable[[], None] = lambda: None,
) -> list[list[str]]:
    """One row of MD5s per layer, or a single row over all layers in their order.

    A chunk is `chunk_size` of the listed blocks, the last may be short. `check_time` is called
    between pieces and raises when nobody waits any more.
    """
    rows: list[list[str]] = [[] for _ in (layers if layerwise else layers[:1])]
    for start in range(0, len(block_ids), chunk_size):
        chunk = block_ids[start : start + chunk_size]
        digests = [hashlib.md5(usedforsecurity=False) for _ in rows]
        for number, read in enumerate(layers):
            for piece in read(chunk):
                digests[number if layerwise else 0].update(piece)
                check_time()
        for row, digest in zip(rows, digests, strict=True):
            row.append(digest.hexdigest())
    return rows


def answer_query(
    query: ChecksumQuery, layers: Sequence[ReadBlocks], num_blocks: int, clock: Callable[[], float] = time.monotonic
) -> ChecksumResult:
    """A worker's answer; whatever is wrong goes into it as its error. No layers: no rows."""
    deadline_s = clock() + query.time_limit_s if query.time_limit_s else None

    def check_time() -> None:
        if deadline_s is not None and clock() > deadline_s:
            raise DeadlineExceededError(f"the checksums took longer than {query.time_limit_s:g} s")

    try:
        check_blocks(query.block_ids, query.chunk_size, num_blocks)
        rows = block_digests(layers, query.block_ids, query.chunk_size, query.layerwise, check_time)
    except (LMCacheError, IndexError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        return ChecksumResult(query.query_id, [], str(error) or type(error).__name__)
    return ChecksumResult(query.query_id, rows)


def check_blocks(block_ids: Sequence[int], chunk_size: int, num_blocks: int) -> None:
    """Raises IndexError for what no cache of so many blocks can answer."""
    if chunk_size < 1:
        raise IndexError(f"chunk_size must be positive (got {chunk_size})")
    outside = next((block_id for block_id in block_ids if not 0 <= block_id < num_blocks), None)
    if outside is not None:
        raise IndexError(f"block id {outside} is outside the cache of {num_blocks} blocks")
