"""From what was found, and the blocks vLLM has for it, to what the ranks load where."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.embedded.jobs import Prompt, RetrieveJob, RetrievePart
from lmcache.errors import LMCacheError
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker
from lmcache.integration.vllm.load_plan import runs_without

# What vLLM puts in the place of blocks that fell out of a window; its content means nothing.
NULL_BLOCK_ID = 0


def make_load(
    tracker: EmbeddedTracker, root: bytes, block_ids: Sequence[int], block_size: int, chunk_size: int
) -> RetrieveJob:
    """`block_ids`: all of the request's. Raises LMCacheError where vLLM has fewer blocks than it counts on."""
    first, last = tracker.local_tokens // block_size, -(-tracker.loaded_until // block_size)
    if tracker.asked is None or len(block_ids) < last:
        raise LMCacheError(f"vLLM counts on {tracker.loaded_until} tokens and has {len(block_ids)} blocks")
    tracker.loading_blocks = tuple(block_id for block_id in block_ids[first:] if block_id != NULL_BLOCK_ID)
    parts = plan_parts(tracker.asked, chunk_size // block_size, first, block_ids[:last])
    num_tokens = tracker.loaded_until - first * block_size
    return RetrieveJob(tracker.request_id, root, tracker.cache_salt, tuple(parts), num_tokens)


def plan_parts(prompt: Prompt, per_chunk: int, first_block: int, block_ids: Sequence[int]) -> list[RetrievePart]:
    """Loads into the blocks from number `first_block` on, whole chunks or parts of them, and none into null blocks.

    `block_ids` are the request's blocks up to the last that is loaded, which is loaded whole.
    """
    parts = []
    for index in range(first_block // per_chunk, -(-len(block_ids) // per_chunk)):
        start, end = max(first_block, index * per_chunk), min(len(block_ids), (index + 1) * per_chunk)
        chunk_blocks = prompt.tail_blocks if index == len(prompt.digests) - 1 else 0
        for run_start, run in runs_without(NULL_BLOCK_ID, start, list(block_ids[start:end])):
            parts.append(RetrievePart(prompt.digests[index], run_start - index * per_chunk, run, chunk_blocks))
    return parts
