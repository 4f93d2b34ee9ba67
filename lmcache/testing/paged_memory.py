"""A synthetic paged KV memory and the byte oracle: every chunk's content follows from its digest and rank.

Whoever loads a chunk can therefore check every byte, whoever wrote it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.integration.mp.checksums import ReadBlocks
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.telemetry.steps import StepObserver

NUM_LAYERS = 4
PAGE_BYTES = 2048
BLOCK_SIZE = 4
BLOCKS_PER_CHUNK = 4
CHUNK_SIZE = BLOCK_SIZE * BLOCKS_PER_CHUNK
CHUNK_BYTES = NUM_LAYERS * BLOCKS_PER_CHUNK * PAGE_BYTES
# What a page holds before a load, so that a page nobody wrote to shows.
_POISON = 0xA5


def digest_of(name: str) -> bytes:
    """The digest of the chunk of that name; the same in every process."""
    return blake3(name.encode()).digest()


def content_of(digest: bytes, rank: int) -> np.ndarray:
    """The bytes of a chunk as `[layers, blocks of the chunk, page bytes]`."""
    content = blake3(digest + rank.to_bytes(2, "little")).digest(length=CHUNK_BYTES)
    return np.frombuffer(content, dtype=np.uint8).reshape(NUM_LAYERS, BLOCKS_PER_CHUNK, PAGE_BYTES)


def make_layout(num_blocks: int) -> KVLayout:
    names = tuple(f"layer.{number}" for number in range(NUM_LAYERS))
    group = KernelGroup(names, PAGE_BYTES, "uint8", (num_blocks, 1, BLOCK_SIZE, PAGE_BYTES // BLOCK_SIZE))
    return KVLayout(BLOCK_SIZE, num_blocks, (group,), "synthetic", "none")


class PagedMemory:
    """Pages of one rank. Not thread-safe for calls that touch the same blocks."""

    def __init__(self, rank: int, num_blocks: int) -> None:
        self.rank = rank
        self.num_blocks = num_blocks
        self.pages = np.full((NUM_LAYERS, num_blocks, PAGE_BYTES), _POISON, dtype=np.uint8)

    def fill(self, digest: bytes, block_ids: Sequence[int]) -> None:
        """As if the engine had computed this chunk into these blocks."""
        self.pages[:, list(block_ids)] = content_of(digest, self.rank)

    def poison(self, block_ids: Sequence[int]) -> None:
        self.pages[:, list(block_ids)] = _POISON

    def readers(self) -> list[ReadBlocks]:
        """For checksums: how the bytes of blocks are read, layer by layer."""
        return [functools.partial(_read_blocks, layer) for layer in self.pages]

    def count_wrong(self, digest: bytes, block_ids: Sequence[int]) -> int:
        """Bytes of these blocks that are not the chunk's."""
        return int(np.count_nonzero(self.pages[:, list(block_ids)] != content_of(digest, self.rank)))


def _read_blocks(layer: np.ndarray, block_ids: Sequence[int]) -> list[bytes]:
    return [layer[list(block_ids)].tobytes()]


class SteppedCopier:
    """Copies a chunk in two halves with a step between them: a copy that can be met half done."""

    def __init__(self, memory: PagedMemory, steps: StepObserver) -> None:
        half = NUM_LAYERS // 2
        self._halves = (CpuCopier([memory.pages[:half]]), CpuCopier([memory.pages[half:]]))
        self._steps = steps
        self.num_blocks = memory.num_blocks
        self.num_layers = NUM_LAYERS
        self.block_bytes = sum(copier.block_bytes for copier in self._halves)

    def gather(self, block_ids: Sequence[int], slot: np.ndarray) -> None:
        first, second = np.split(slot, 2)
        self._halves[0].gather(block_ids, first)
        self._steps.reached("store.half")
        self._halves[1].gather(block_ids, second)

    def scatter(self, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        first, second = np.split(slot, 2)
        self._halves[0].scatter(first, first_block, block_ids)
        self._steps.reached("load.half")
        self._halves[1].scatter(second, first_block, block_ids)

    def gather_layer(self, layer: int, block_ids: Sequence[int], slot: np.ndarray) -> None:
        copier, slot, layer = self._half_of(layer, slot)
        copier.gather_layer(layer, block_ids, slot)

    def scatter_layer(self, layer: int, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        copier, slot, layer = self._half_of(layer, slot)
        copier.scatter_layer(layer, slot, first_block, block_ids)

    def _half_of(self, layer: int, slot: np.ndarray) -> tuple[CpuCopier, np.ndarray, int]:
        half, layer = divmod(layer, NUM_LAYERS // 2)
        return self._halves[half], np.split(slot, 2)[half], layer
