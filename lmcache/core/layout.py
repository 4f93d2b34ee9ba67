"""What one rank's KV pages look like to us: opaque bytes, moved whole.

A block of the engine is, in memory, one page per layer. A chunk is a whole number of
blocks. Nothing here interprets what lies inside a page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from lmcache.errors import DeclinedError

_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,9})(?:\.|$)")


@dataclass(frozen=True, slots=True)
class KernelGroup:
    """Layers that share one page shape. `page_bytes` is one layer's share of one block."""

    layer_names: tuple[str, ...]
    page_bytes: int
    dtype: str
    shape: tuple[int, ...]
    attention_backend: str = ""

    @property
    def num_layers(self) -> int:
        return len(self.layer_names)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Everything that decides where a byte of KV lies in a chunk, for one rank.

    Attributes:
        block_size: tokens per block.
        num_blocks: blocks of the engine's cache (not part of the identity).
        groups: kernel groups, in the order their pages lie in a chunk.
        format_name: name of the engine's KV format, e.g. `NL_X_NB_NH_BS_HS`.
        packing: how the platform packs bytes inside a page (instruction set, kernel version).
        is_mla: whether every tensor-parallel rank holds the same bytes.
    """

    block_size: int
    num_blocks: int
    groups: tuple[KernelGroup, ...]
    format_name: str
    packing: str
    is_mla: bool = False

    @property
    def num_layers(self) -> int:
        return sum(group.num_layers for group in self.groups)

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """The model's number of each layer, in the order of the groups: the one in its name, as in
        `model.layers.3.self_attn`. Counted from 0 where names do not tell all layers apart."""
        names = [name for group in self.groups for name in group.layer_names]
        found = [_NUMBER.search(name) for name in names]
        indices = tuple(int(number[1]) for number in found if number is not None)
        return indices if len(set(indices)) == len(names) else tuple(range(len(names)))

    @property
    def has_block_axis(self) -> bool:
        """Whether every group is an array of blocks, so that a block can be asked for by its id."""
        return all(group.shape[:1] == (self.num_blocks,) for group in self.groups)

    @property
    def block_bytes(self) -> int:
        return sum(group.num_layers * group.page_bytes for group in self.groups)

    @property
    def bytes_per_token(self) -> int:
        return self.block_bytes // self.block_size

    def blocks_per_chunk(self, chunk_size: int) -> int:
        check_chunk_size(chunk_size, self.block_size)
        return chunk_size // self.block_size

    def chunk_bytes(self, chunk_size: int) -> int:
        return self.blocks_per_chunk(chunk_size) * self.block_bytes

    def describe(self) -> str:
        """How a chunk's bytes lie, as JSON, for whoever meets a stored object: group by group an array
        `[layers, blocks, page]`, where a page is `shape` values of `dtype`."""
        groups = [
            {"dtype": group.dtype, "shape": list(group.shape[1:]), "layers": group.num_layers, "page": group.page_bytes}
            for group in self.groups
        ]
        described = {"format": self.format_name, "block_size": self.block_size, "groups": groups}
        return json.dumps(described, separators=(",", ":"))

    def identity(self) -> list[object]:
        """The fields that must be equal for two ranks to share bytes, as plain values."""
        groups = [[list(g.layer_names), g.page_bytes, g.dtype, list(g.shape[1:])] for g in self.groups]
        return [self.block_size, groups, self.format_name, self.packing, self.is_mla]


def check_chunk_size(chunk_size: int, block_size: int) -> None:
    if chunk_size % block_size != 0:
        raise DeclinedError(
            f"chunk size {chunk_size} is not a multiple of the engine's block size {block_size}: start "
            f"lmcache server with --chunk-size {max(block_size, chunk_size // block_size * block_size)}, "
            f"or vLLM with a --block-size that divides {chunk_size}"
        )
