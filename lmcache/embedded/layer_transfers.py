"""A store and a load that copy one layer at a time, while the engine computes the others.

Slots look as after a copy of everything at once, and are checked at the same two moments: before the first
layer and after the last. Knows no thread: who copies which layer when is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmcache.embedded.jobs import RetrievePart
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.kv_copy.base import KVCopier
from lmcache.l1.manager import L1Manager
from lmcache.l1.values import Place

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
# The digest of a chunk that was stored, and where it is.
Stored = tuple[bytes, Place]


@dataclass(frozen=True, slots=True)
class ReservedChunk:
    """A chunk whose pages `block_ids` go to a slot that its writer has to itself."""

    digest: bytes
    block_ids: tuple[int, ...]
    place: Place
    slot: Bytes


@dataclass(frozen=True, slots=True)
class HeldPart:
    """A part of a chunk in a slot that is locked for its reader."""

    part: RetrievePart
    place: Place
    slot: Bytes


class LayerStore:
    """Ends with `commit` or `abort`, once; until then the slots are its own, and the pages must stay."""

    def __init__(
        self,
        chunks: Sequence[ReservedChunk],
        copier: KVCopier,
        commit: Callable[[Sequence[ReservedChunk]], list[Stored]],
        abort: Callable[[Sequence[ReservedChunk]], None],
        meter: EmbeddedMetrics,
    ) -> None:
        self._chunks = chunks
        self._copier = copier
        self._commit = commit
        self._abort = abort
        self._meter = meter
        self._copied_s = 0.0
        self._missing = set(range(copier.num_layers))

    def copy(self, layer: int) -> None:
        """This layer's pages are final. A layer that is copied again is as it was copied last."""
        self._missing.discard(layer)
        begun_s = self._meter.clock()
        for chunk in self._chunks:
            self._copier.gather_layer(layer, chunk.block_ids, chunk.slot)
        self._copied_s += self._meter.clock() - begun_s

    def commit(self) -> list[Stored]:
        """All pages are final: copy what is missing; what was stored."""
        try:
            for layer in sorted(self._missing):
                self.copy(layer)
        except BaseException:
            self.abort()
            raise
        chunks, self._chunks = self._chunks, ()
        if chunks:
            self._meter.gathered(self._copied_s)
        return self._commit(chunks)

    def abort(self) -> None:
        """Idempotent."""
        chunks, self._chunks = self._chunks, ()
        self._abort(chunks)


class LayerLoad:
    """Ends with `end`. `failure`: why its pages must not be trusted, as far as is known; empty: nothing is wrong."""

    def __init__(
        self,
        parts: Sequence[HeldPart],
        copier: KVCopier,
        l1: L1Manager,
        on_end: Callable[[], object],
        on_copied: Callable[[], None],
        meter: EmbeddedMetrics,
        failure: str = "",
    ) -> None:
        """`on_copied` is told before the last check of each part."""
        self._parts = list(parts)
        self._copier = copier
        self._l1 = l1
        self._on_end = on_end
        self._on_copied = on_copied
        self._meter = meter
        self._copied_s = 0.0
        self.failure = failure

    def copy_last_block(self) -> None:
        """Load the last block whole, now: the engine writes to it before it asks for the rest of its layer."""
        if not self._parts:
            return
        last = self._parts.pop()
        first_block, block_ids = last.part.first_block, last.part.block_ids
        self._copier.scatter(last.slot, first_block + len(block_ids) - 1, block_ids[-1:])
        self._parts.append(replace(last, part=replace(last.part, block_ids=block_ids[:-1])))

    def copy(self, layer: int) -> None:
        if self.failure:
            return
        begun_s = self._meter.clock()
        for held in self._parts:
            self._copier.scatter_layer(layer, held.slot, held.part.first_block, held.part.block_ids)
        self._copied_s += self._meter.clock() - begun_s

    def end(self, is_whole: bool) -> str:
        """Nothing is copied any more, and `is_whole` tells whether all layers were. Empty, or why it failed."""
        parts, self._parts = self._parts, []
        try:
            for held in parts:
                self._on_copied()
                if not self._l1.holds(held.place):
                    self.failure = self.failure or "it was cleared while it was read"
        finally:
            self._l1.unlock([held.place for held in parts])
            self._on_end()
        if not is_whole:
            self.failure = self.failure or "it was not whole when its step ended"
        if not self.failure:
            self._meter.scattered(self._copied_s)
        return self.failure
