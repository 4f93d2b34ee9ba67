"""What a copier does: gather an engine's blocks into a slot, scatter a slot into blocks.

In a slot, the pages of a chunk lie region by region, layer by layer, block by block:
`[layers, blocks of the chunk, page bytes]` for each region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class KVCopier(Protocol):
    """Thread-safe as long as no two calls touch the same pages.

    `num_layers`: how many parts of every block can be copied by themselves, in the order in which they lie in a slot.
    """

    block_bytes: int
    num_blocks: int
    num_layers: int

    def gather(self, block_ids: Sequence[int], slot: np.ndarray) -> None:
        """Copy whole blocks into `slot` (uint8, exactly `len(block_ids) * block_bytes`)."""

    def scatter(self, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        """Copy blocks `first_block...` of the chunk in `slot` into these blocks of the engine."""

    def gather_layer(self, layer: int, block_ids: Sequence[int], slot: np.ndarray) -> None:
        """As `gather`, of one layer alone, to where `gather` would put it."""

    def scatter_layer(self, layer: int, slot: np.ndarray, first_block: int, block_ids: Sequence[int]) -> None:
        """As `scatter`, of one layer alone."""
