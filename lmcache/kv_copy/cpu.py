"""Copying between host memory and the pool with numpy, which releases the interpreter meanwhile.

`take` and fancy assignment over whole pages come near the speed of one memmove of the same
bytes; token-major layouts do not. Large pages are copied block by block, which is faster
still, and neighbouring blocks, which is what engines mostly allocate, as slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcache.errors import DeclinedError

_WORD_BYTES = 8
_LARGE_PAGE_BYTES = 65536


class CpuCopier:
    """`regions`: C-contiguous uint8 arrays `[layers, blocks, page bytes]` over the engine's memory."""

    def __init__(self, regions: Sequence[np.ndarray]) -> None:
        for region in regions:
            if region.dtype != np.uint8 or region.ndim != 3 or not region.flags.c_contiguous:
                raise DeclinedError("a KV region must be a contiguous uint8 array [layers, blocks, page bytes]")
        self.num_blocks = min(region.shape[1] for region in regions)
        self.block_bytes = sum(region.shape[0] * region.shape[2] for region in regions)
        self._regions = [_as_words(region) for region in regions]
        self._layers = [(number, row) for number, region in enumerate(regions) for row in range(region.shape[0])]
        self.num_layers = len(self._layers)

    def gather(self, block_ids: Sequence[int], slot: np.ndarray) -> None:
        ids = self._checked(block_ids)
        position = 0
        for region in self._regions:
            part, position = self._part(region, slot, position, len(ids))
            _gather(region, ids, part)

    def scatter(self, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        ids = self._checked(block_ids)
        blocks_in_slot = self._blocks_in(slot, first_block, ids)
        position = 0
        for region in self._regions:
            part, position = self._part(region, slot, position, blocks_in_slot)
            _scatter(part[:, first_block : first_block + len(ids)], region, ids)

    def gather_layer(self, layer: int, block_ids: Sequence[int], slot: np.ndarray) -> None:
        ids = self._checked(block_ids)
        row, position = self._row(layer, len(ids))
        _gather(row, ids, self._part(row, slot, position, len(ids))[0])

    def scatter_layer(self, layer: int, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        ids = self._checked(block_ids)
        blocks_in_slot = self._blocks_in(slot, first_block, ids)
        row, position = self._row(layer, blocks_in_slot)
        part, _ = self._part(row, slot, position, blocks_in_slot)
        _scatter(part[:, first_block : first_block + len(ids)], row, ids)

    def _row(self, layer: int, blocks_in_slot: int) -> tuple[np.ndarray, int]:
        """A layer as a region of one, and where it begins in a slot."""
        number, row = self._layers[layer]
        before = sum(region.shape[0] * _page_bytes(region) for region in self._regions[:number])
        region = self._regions[number]
        return region[row : row + 1], (before + row * _page_bytes(region)) * blocks_in_slot

    def _blocks_in(self, slot: np.ndarray, first_block: int, ids: np.ndarray) -> int:
        blocks_in_slot: int = len(slot) // self.block_bytes
        if first_block + len(ids) > blocks_in_slot:
            raise IndexError(f"blocks {first_block}+{len(ids)} are outside a chunk of {blocks_in_slot}")
        return blocks_in_slot

    def _checked(self, block_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(block_ids, dtype=np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_blocks):
            raise IndexError(f"block ids must be 0 to {self.num_blocks - 1}")
        return ids

    @staticmethod
    def _part(region: np.ndarray, slot: np.ndarray, position: int, num_blocks: int) -> tuple[np.ndarray, int]:
        layers, _, page = region.shape
        num_bytes = layers * num_blocks * page * region.itemsize
        part = slot[position : position + num_bytes].view(region.dtype).reshape(layers, num_blocks, page)
        return part, position + num_bytes


def _gather(region: np.ndarray, ids: np.ndarray, part: np.ndarray) -> None:
    """Blocks of some layers into their part of a slot."""
    first = _first_of_run(ids)
    if first is not None:
        np.copyto(part, region[:, first : first + len(ids)])
    elif _page_bytes(region) >= _LARGE_PAGE_BYTES:
        for position_in_chunk, block_id in enumerate(ids):
            np.copyto(part[:, position_in_chunk], region[:, block_id])
    else:
        np.take(region, ids, axis=1, out=part, mode="clip")


def _scatter(wanted: np.ndarray, region: np.ndarray, ids: np.ndarray) -> None:
    """Blocks as they lie in a slot into some layers."""
    first = _first_of_run(ids)
    if first is not None:
        np.copyto(region[:, first : first + len(ids)], wanted)
    elif _page_bytes(region) >= _LARGE_PAGE_BYTES:
        for position_in_chunk, block_id in enumerate(ids):
            np.copyto(region[:, block_id], wanted[:, position_in_chunk])
    else:
        # Layer by layer: a single fancy axis is the faster path in numpy.
        for layer, pages in zip(region, wanted, strict=True):
            layer[ids] = pages


def _page_bytes(region: npt.NDArray[Any]) -> int:
    return int(region.shape[2] * region.itemsize)


def _first_of_run(ids: np.ndarray) -> int | None:
    """The first block if the blocks are neighbours in ascending order, else None."""
    is_run = len(ids) > 0 and bool((ids[1:] - ids[:-1] == 1).all())
    return int(ids[0]) if is_run else None


def _as_words(region: np.ndarray) -> np.ndarray:
    """The same memory in 8-byte words where pages allow it: a little faster than bytes."""
    is_aligned = region.shape[2] % _WORD_BYTES == 0 and region.ctypes.data % _WORD_BYTES == 0
    return region.view(np.uint64) if is_aligned else region
