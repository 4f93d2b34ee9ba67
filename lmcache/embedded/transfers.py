"""The copying of an embedded engine: pages of its rank into slots of L1, and back.

Decides nothing about what is kept, and knows no tier and no lookup.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from lmcache.embedded.config import Rank
from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.layer_transfers import Bytes, HeldPart, LayerLoad, LayerStore, ReservedChunk, Stored
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.engine.pool import Pool
from lmcache.kv_copy.base import KVCopier
from lmcache.kv_copy.lossy_chunks import LossyChunks
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from lmcache.telemetry.steps import NO_STEPS, StepObserver


class PageTransfers:
    """Belongs to the thread that owns the pages it names. `writer_uid`: as whom it writes to slots."""

    def __init__(
        self,
        rank: Rank,
        pool: Pool,
        copier: KVCopier,
        chunk_bytes: int,
        writer_uid: int,
        steps: StepObserver = NO_STEPS,
        meter: EmbeddedMetrics | None = None,
    ) -> None:
        self._meter = meter or EmbeddedMetrics.unshown()
        self._rank_group = rank.rank_group
        self._block_size = rank.layout.block_size
        self._pool = pool
        self._l1 = pool.l1
        self._copier = copier
        self._lossy = LossyChunks(copier.num_blocks)
        self._chunk_bytes = chunk_bytes
        self._writer_uid = writer_uid
        self._steps = steps

    def store(self, key: NamespaceKey, job: StoreJob) -> list[Stored]:
        """Copy the pages of chunks that L1 does not have; the digests of those that found room, and where they are.

        When this returns, nobody reads those pages any more.
        """
        chunks, num_written = self._reserve(key, job), 0
        stored: list[Stored] = []
        begun_s = self._meter.clock()
        try:
            for chunk in chunks:
                self._copier.gather(chunk.block_ids, chunk.slot)
                self._steps.reached("store.copied")
                num_written += 1
            if chunks:
                self._meter.gathered(self._meter.clock() - begun_s)
        finally:
            stored += self._commit(chunks[:num_written])
            self._abort(chunks[num_written:])
        return stored

    def begin_store(self, key: NamespaceKey, job: StoreJob) -> LayerStore:
        """Slots for the chunks that L1 does not have, before their pages are computed."""
        return LayerStore(self._reserve(key, job), self._copier, self._commit, self._abort, self._meter)

    def _reserve(self, key: NamespaceKey, job: StoreJob) -> list[ReservedChunk]:
        reserved: list[ReservedChunk] = []
        chunks = [(job.digests[at], job.block_ids[at]) for at in self._lossy.exact(job.digests, job.num_cached)]
        for num_blocks, group in itertools.groupby(chunks, key=lambda chunk: len(chunk[1])):
            alike = list(group)
            result = self._l1.reserve(
                key, self._rank_group, self._writer_uid, [digest for digest, _ in alike], self._bytes_of(num_blocks)
            )
            granted = iter(split_places(self._l1.places(result.slots)))
            for (digest, block_ids), status in zip(alike, result.statuses, strict=True):
                if status == ReserveStatus.RESERVED:
                    slot, word, offset, length = next(granted)
                    place = Place(slot, word, length)
                    reserved.append(ReservedChunk(digest, block_ids, place, self._slot(offset, length)))
        return reserved

    def _bytes_of(self, num_blocks: int) -> int:
        return num_blocks * self._copier.block_bytes

    def _commit(self, chunks: Sequence[ReservedChunk]) -> list[Stored]:
        accepted = set(self._l1.commit(self._writer_uid, [chunk.place for chunk in chunks]))
        return [(chunk.digest, chunk.place) for chunk in chunks if chunk.place.slot in accepted]

    def _abort(self, chunks: Sequence[ReservedChunk]) -> None:
        if chunks:
            self._l1.abort(self._writer_uid, [chunk.place for chunk in chunks])

    def retrieve(self, key: NamespaceKey, parts: Sequence[RetrievePart], retain: bool) -> str:
        """Copy chunks that L1 has into the pages: empty, or why these pages must not be trusted."""
        begun_s = self._meter.clock()
        held, failure = self._hold(key, parts, retain)
        try:
            failure = failure or next(filter(None, map(self._scatter, held)), "")
        finally:
            self._l1.unlock([part.place for part in held])
        if not failure:
            self._meter.scattered(self._meter.clock() - begun_s)
        return failure

    def _scatter(self, held: HeldPart) -> str:
        self._copier.scatter(held.slot, held.part.first_block, held.part.block_ids)
        self._steps.reached("retrieve.copied")
        return "" if self._l1.holds(held.place) else "it was cleared while it was read"

    def begin_retrieve(
        self, key: NamespaceKey, job: RetrieveJob, retain: bool, on_end: Callable[[], object]
    ) -> LayerLoad:
        """Hold all that is to be loaded; the last block is loaded now if the engine will write to it."""
        held, failure = self._hold(key, job.parts, retain)
        on_copied = functools.partial(self._steps.reached, "retrieve.copied")
        load = LayerLoad(held, self._copier, self._l1, on_end, on_copied, self._meter, failure)
        try:
            if not failure and job.num_tokens % self._block_size:
                load.copy_last_block()
        except BaseException:
            load.end(False)
            raise
        return load

    def _hold(self, key: NamespaceKey, parts: Sequence[RetrievePart], retain: bool) -> tuple[list[HeldPart], str]:
        """Lock chunks for their reader: the leading ones that can be read, and why the next one cannot."""
        found = self._l1.lock_keys(key, self._rank_group, [part.digest for part in parts], retain)
        held: list[HeldPart] = []
        failure = "it was evicted or cleared" if len(found) < len(parts) else ""
        for part, (place, offset) in zip(parts, found, strict=False):
            self._steps.reached("retrieve.check")
            if place.length != (self._bytes_of(part.chunk_blocks) or self._chunk_bytes):
                # Nobody could ever load it, and while it is there nobody stores it anew.
                self._l1.let_go([place])
                self._l1.unlock([unread for unread, _ in found[len(held) :]])
                return held, "its place does not fit this engine"
            if self._l1.is_lossy(place):
                self._lossy.add(part.digest)
            held.append(HeldPart(part, place, self._slot(offset, place.length)))
        return held, failure

    def _slot(self, offset: int, length: int) -> Bytes:
        return np.frombuffer(self._pool.view(offset, length), dtype=np.uint8)
