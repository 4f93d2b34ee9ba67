"""Where pages lie in an engine's memory, and numpy regions over them. Knows strides, not what a page holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmcache.errors import DeclinedError


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's pages: `num_rows` dense arrays `[blocks, row_bytes]`, `row_stride` bytes apart.

    One row, unless the physical order puts heads outside of blocks. All positions in bytes
    from the start of the storage.
    """

    name: str
    tensor: torch.Tensor
    offset: int
    num_rows: int
    row_bytes: int
    row_stride: int
    block_stride: int

    @property
    def page_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    @property
    def memory(self) -> int:
        """Address of the allocation: layers of one can lie in one region."""
        return int(self.tensor.untyped_storage().data_ptr())


def find_regions(layers: Sequence[LayerPages], num_blocks: int) -> list[np.ndarray]:
    """C-contiguous regions `[rows, blocks, page bytes]` that hold all layers, in their order."""
    is_block_outermost = layers[0].block_stride > layers[0].row_bytes
    return _packed_region(layers, num_blocks) if is_block_outermost else _dense_regions(layers, num_blocks)


def find_pages(name: str, tensor: torch.Tensor, num_blocks: int) -> LayerPages:
    """Read one layer's `[blocks, heads, tokens, content]` view. Raises DeclinedError."""
    if tensor.device.type != "cpu":
        raise DeclinedError(f"KV on the device {tensor.device.type!r} is not supported, only on 'cpu'")
    if tensor.ndim != 4 or tensor.shape[0] % num_blocks:
        raise DeclinedError(f"KV of {name} has the shape {tuple(tensor.shape)}, not [{num_blocks} blocks, heads, ...]")
    # The engine's kernels may cut a block into several of theirs, which then lie one after the other.
    ratio = tensor.shape[0] // num_blocks
    item = tensor.element_size()
    kernel, head, token, content = (stride * item for stride in tensor.stride())
    block_stride = kernel * ratio
    _, heads, tokens, contents = tensor.shape
    is_head_outside = heads > 1 and head > block_stride
    inside = [(ratio, kernel), (tokens, token), (contents, content)]
    if not is_head_outside:
        inside.append((heads, head))
    row_bytes = math.prod(length for length, _ in inside) * item
    if block_stride == row_bytes:
        _check_dense(name, inside, item)
    return LayerPages(
        name=name,
        tensor=tensor,
        offset=tensor.storage_offset() * item,
        num_rows=heads if is_head_outside else 1,
        row_bytes=row_bytes,
        row_stride=head if is_head_outside else 0,
        block_stride=block_stride,
    )


def _check_dense(name: str, axes: Iterable[tuple[int, int]], item: int) -> None:
    """The axes, in whatever order, fill one run of bytes."""
    size = item
    for length, stride in sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: axis[1]):
        if stride != size:
            raise DeclinedError(f"a block of {name} does not lie in one piece: a stride of {stride} bytes, not {size}")
        size *= length


def _dense_regions(layers: Sequence[LayerPages], num_blocks: int) -> list[np.ndarray]:
    """One region per run of layers that follow each other in memory without a gap."""
    runs: list[tuple[LayerPages, list[int]]] = []
    for layer in layers:
        if layer.block_stride != layer.row_bytes:
            raise DeclinedError(
                f"pages of {layer.name} hold {layer.row_bytes} bytes and start every {layer.block_stride}"
            )
        for row in range(layer.num_rows):
            _append_row(runs, layer, layer.offset + row * layer.row_stride, layer.row_bytes * num_blocks)
    return [_region(first, offsets[0], len(offsets), num_blocks, first.row_bytes) for first, offsets in runs]


def _append_row(runs: list[tuple[LayerPages, list[int]]], layer: LayerPages, offset: int, row_bytes: int) -> None:
    if runs:
        first, offsets = runs[-1]
        is_same_memory = first.memory == layer.memory
        if is_same_memory and first.row_bytes == layer.row_bytes and offsets[-1] + row_bytes == offset:
            offsets.append(offset)
            return
    runs.append((layer, [offset]))


def _packed_region(layers: Sequence[LayerPages], num_blocks: int) -> list[np.ndarray]:
    """One region of one row: a block holds the pages of all layers, in whatever order, which must fill it."""
    first = min(layers, key=lambda layer: layer.offset)
    block_bytes = first.block_stride
    total = sum(layer.page_bytes for layer in layers)
    is_together = all(
        layer.memory == first.memory and layer.block_stride == block_bytes and layer.offset < first.offset + block_bytes
        for layer in layers
    )
    if total != block_bytes or not is_together:
        raise DeclinedError(f"pages of all layers ({total} bytes) do not fill a block ({block_bytes} bytes)")
    return [_region(first, first.offset, 1, num_blocks, block_bytes)]


def _region(layer: LayerPages, offset: int, num_rows: int, num_blocks: int, page_bytes: int) -> np.ndarray:
    storage = layer.tensor.untyped_storage()
    if offset + num_rows * num_blocks * page_bytes > storage.nbytes():
        raise DeclinedError(f"pages of {layer.name} reach beyond their allocation")
    raw = torch.empty(0, dtype=torch.uint8)
    raw.set_(storage, offset, (num_rows, num_blocks, page_bytes))
    region: np.ndarray = raw.numpy()
    return region
