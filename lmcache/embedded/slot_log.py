"""What an operator who follows the slots of stores and retrieves reads in the log."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.core.block_ranges import format_block_ids


def slots_line(verb: str, request_id: str, num_tokens: int, slots: Sequence[int]) -> str:
    """One store or retrieve of `num_tokens` tokens, which lie at these slots."""
    mapping = format_block_ids(slots)
    return f"[KVCache Check] {verb} request {request_id}, tokens={num_tokens}, slot_mapping: [{mapping}]"


def slots_of_blocks(block_ids: Sequence[int], block_size: int, num_tokens: int) -> list[int]:
    """Where so many tokens lie, from the start of the first block on."""
    return [block_id * block_size + offset for block_id in block_ids for offset in range(block_size)][:num_tokens]
