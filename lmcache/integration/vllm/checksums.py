"""Bytes of vLLM's KV tensors for the documented checksums: bfloat16 widened to float32, blocks as listed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from lmcache.core.layout import KVLayout
from lmcache.integration.mp.checksums import ReadBlocks, block_digests, check_blocks

_PIECE_BYTES = 8 << 20


def layers_by_index(kv_caches: Mapping[str, torch.Tensor], layout: KVLayout) -> list[torch.Tensor]:
    """The layers that own memory, in the order of the model, as arrays whose first axis is the engine's blocks.

    The engine's kernels may cut a block into several of theirs, which then follow each other.
    """
    names = itertools.chain.from_iterable(group.layer_names for group in layout.groups)
    ordered = sorted(zip(layout.layer_indices, names, strict=True))
    return [kv_caches[name].unflatten(0, (layout.num_blocks, -1)) for _, name in ordered]


def readers(layers: Sequence[torch.Tensor], block_axis: int = 0) -> list[ReadBlocks]:
    """How the bytes of blocks are read, layer by layer."""
    return [functools.partial(_pieces, layer, block_axis) for layer in layers]


def block_checksums(
    layers: Sequence[torch.Tensor], block_ids: Sequence[int], chunk_size: int, layerwise: bool, block_axis: int = 0
) -> list[list[str]]:
    """MD5 rows of these tensors, see `block_digests`. Raises IndexError for a block outside the cache."""
    check_blocks(block_ids, chunk_size, min((layer.shape[block_axis] for layer in layers), default=0))
    return block_digests(readers(layers, block_axis), block_ids, chunk_size, layerwise)


def _pieces(layer: torch.Tensor, block_axis: int, block_ids: Sequence[int]) -> Iterator[memoryview]:
    """The blocks gathered along their axis, C-contiguous, in pieces of bounded size."""
    if block_axis:
        for part in layer:
            yield from _pieces(part, block_axis - 1, block_ids)
        return
    step = max(1, _PIECE_BYTES // max(1, layer[0].numel() * layer.element_size()))
    for start in range(0, len(block_ids), step):
        yield _bytes_of(layer, block_ids[start : start + step])


def _bytes_of(layer: torch.Tensor, block_ids: Sequence[int]) -> memoryview:
    taken = layer.index_select(0, torch.tensor(block_ids, device=layer.device)).cpu()
    if taken.dtype == torch.bfloat16:
        taken = taken.float()
    raw = taken.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(raw)
