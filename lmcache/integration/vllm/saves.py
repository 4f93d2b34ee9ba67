"""Saves under way: which blocks they hold in vLLM's block pool, and when they let go.

A held block cannot be reused by vLLM, so preemption, abort, finish and sliding windows need
no special case. Blocks are held from `build_connector_meta` until every rank has reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lmcache.v1.multiprocess.custom_types import RequestAllocationRecord


@dataclass(slots=True)
class _Save:
    record: RequestAllocationRecord
    num_reports: int = 0


class SaveLedger:
    """Belongs to the scheduler's thread. `world_size` reports end a save."""

    def __init__(self, world_size: int, held_fraction: float) -> None:
        self._world_size = world_size
        self._held_fraction = held_fraction
        self._pool: Any = None
        self._saves: dict[int, _Save] = {}
        self._next_id = 1
        self._num_held = 0

    def bind(self, block_pool: Any) -> None:
        self._pool = block_pool

    @property
    def is_bound(self) -> bool:
        return self._pool is not None

    @property
    def num_open(self) -> int:
        return len(self._saves)

    @property
    def null_block_id(self) -> int:
        return int(self._pool.null_block.block_id)

    def is_pool_empty(self) -> bool:
        """Whether vLLM holds no block at all, as after a reset that succeeded."""
        return self._pool is None or self._pool.get_num_free_blocks() >= self._pool.num_gpu_blocks - 1

    def forget_cached(self, block_ids: Iterable[int]) -> None:
        """Take blocks out of vLLM's prefix cache; who uses them keeps them."""
        self._pool.evict_blocks(set(block_ids))

    def has_room(self, num_blocks: int) -> bool:
        """Whether so many more blocks may be kept from vLLM."""
        return bool(self._num_held + num_blocks <= self._held_fraction * self._pool.num_gpu_blocks)

    def open(self, request_id: str, block_ids: Iterable[int]) -> int:
        """Hold these blocks; returns the id of the save."""
        record = RequestAllocationRecord(request_id, tuple(block_ids))
        self._pool.touch([self._pool.blocks[block_id] for block_id in record.block_ids])
        self._num_held += len(record.block_ids)
        job_id, self._next_id = self._next_id, self._next_id + 1
        self._saves[job_id] = _Save(record)
        return job_id

    def report(self, job_id: int, num_reports: int) -> bool:
        """So many more ranks are done; True once the save ended and its blocks were let go."""
        save = self._saves.get(job_id)
        if save is None:
            return False
        save.num_reports += num_reports
        if save.num_reports < self._world_size:
            return False
        del self._saves[job_id]
        self._num_held -= len(save.record.block_ids)
        # The tail first, as vLLM itself frees: leaves are reused before roots.
        self._pool.free_blocks([self._pool.blocks[block_id] for block_id in reversed(save.record.block_ids)])
        return True
