"""Which blocks of which promised chunk go where. Pure arithmetic over tokens, blocks and chunks."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.integration.mp.jobs import LoadChunk
from lmcache.integration.mp.lookups import Promise


def plan_load(
    promise: Promise,
    block_size: int,
    first_token: int,
    num_tokens: int,
    block_ids: Sequence[int],
    null_block_id: int | None,
) -> tuple[LoadChunk, ...]:
    """Loads of `num_tokens` tokens from `first_token` on, which is the first of a block.

    `block_ids` are all blocks of the request. A load may start and end inside a chunk; null
    blocks (out of a sliding window) are left out; a last block is loaded whole even if only
    part of its tokens is wanted.
    """
    per_chunk = promise.chunk_size // block_size
    first, last = first_token // block_size, -(-(first_token + num_tokens) // block_size)
    chunks = []
    for index in range(first // per_chunk, chunks_needed(promise, first_token + num_tokens)):
        start, end = max(first, index * per_chunk), min(last, (index + 1) * per_chunk)
        for run_start, run in runs_without(null_block_id, start, list(block_ids[start:end])):
            chunks.append(LoadChunk(promise.chunks[index], run_start - index * per_chunk, run))
    return tuple(chunks)


def chunks_needed(promise: Promise, num_tokens: int) -> int:
    """How many leading chunks cover so many tokens."""
    return -(-num_tokens // promise.chunk_size)


def runs_without(null_block_id: int | None, start: int, block_ids: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Consecutive blocks with their first position, null blocks (out of a sliding window) left out."""
    if null_block_id is None or null_block_id not in block_ids:
        return [(start, tuple(block_ids))] if block_ids else []
    runs: list[tuple[int, tuple[int, ...]]] = []
    current: list[int] = []
    for position, block_id in enumerate([*block_ids, null_block_id], start):
        if block_id != null_block_id:
            current.append(block_id)
        elif current:
            runs.append((position - len(current), tuple(current)))
            current = []
    return runs
