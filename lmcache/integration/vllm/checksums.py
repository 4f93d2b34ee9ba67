"""MD5 of engine blocks, as the documented check computes them: per chunk, or per layer and chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def block_checksums(
    layers: Sequence[torch.Tensor], block_ids: Sequence[int], chunk_size: int, layerwise: bool, block_axis: int = 0
) -> list[list[str]]:
    """One row of MD5s per layer, or a single row over all layers.

    Blocks are gathered in the given order along `block_axis`; bfloat16 is widened to
    float32 first; a chunk is `chunk_size` blocks, the last may be short. Raises
    IndexError for a block outside the cache.
    """
    if chunk_size < 1:
        raise IndexError(f"chunk_size must be positive (got {chunk_size})")
    num_blocks = min(layer.shape[block_axis] for layer in layers)
    outside = [block_id for block_id in block_ids if not 0 <= block_id < num_blocks]
    if outside:
        raise IndexError(f"block id {outside[0]} is outside the cache of {num_blocks} blocks")
    starts = range(0, len(block_ids), chunk_size)
    digests = [[hashlib.md5(usedforsecurity=False) for _ in starts] for _ in (layers if layerwise else layers[:1])]
    for number, layer in enumerate(layers):
        row = digests[number if layerwise else 0]
        for digest, start in zip(row, starts, strict=True):
            digest.update(_bytes_of(layer, list(block_ids[start : start + chunk_size]), block_axis))
    return [[digest.hexdigest() for digest in row] for row in digests]


def _bytes_of(layer: torch.Tensor, block_ids: list[int], block_axis: int) -> bytes:
    taken = layer.index_select(block_axis, torch.tensor(block_ids, device=layer.device)).cpu()
    if taken.dtype == torch.bfloat16:
        taken = taken.float()
    if taken.dtype.itemsize == 1:
        taken = taken.view(torch.uint8)
    return bytes(taken.contiguous().numpy().tobytes())
