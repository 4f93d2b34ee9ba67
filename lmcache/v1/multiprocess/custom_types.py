"""Values at a path that vLLM's built-in connector module imports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestAllocationRecord:
    """Blocks of one request that something of ours still needs, by vLLM's block ids."""

    request_id: str
    block_ids: tuple[int, ...]
