"""The copying of an embedded engine: pages of its rank into slots of L1, and back.

Decides nothing about what is kept, and knows no tier and no lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmcache.embedded.config import Rank
from lmcache.embedded.jobs import RetrievePart, StoreJob
from lmcache.engine.pool import Pool
from lmcache.kv_copy.base import KVCopier
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
    ) -> None:
        self._rank_group = rank.rank_group
        self._pool = pool
        self._l1 = pool.l1
        self._copier = copier
        self._chunk_bytes = chunk_bytes
        self._writer_uid = writer_uid
        self._steps = steps

    def store(self, key: NamespaceKey, job: StoreJob) -> list[tuple[bytes, Place]]:
        """Copy the pages of chunks that L1 does not have; the digests of those that found room, and where they are.

        When this returns, nobody reads those pages any more.
        """
        reserved = self._l1.reserve(key, self._rank_group, self._writer_uid, job.digests, self._chunk_bytes)
        granted = split_places(self._l1.places(reserved.slots))
        wanted = [i for i, status in enumerate(reserved.statuses) if status == ReserveStatus.RESERVED]
        written: list[Place] = []
        try:
            for index, (slot, word, offset, length) in zip(wanted, granted, strict=True):
                self._copier.gather(job.block_ids[index], self._slot(offset, length))
                self._steps.reached("store.copied")
                written.append(Place(slot, word, length))
        finally:
            accepted = set(self._l1.commit(self._writer_uid, written))
            if len(written) < len(granted):
                unused = [Place(slot, word) for slot, word, _, _ in granted[len(written) :]]
                self._l1.abort(self._writer_uid, unused)
        return [
            (job.digests[index], place)
            for index, place in zip(wanted, written, strict=True)
            if place.slot in accepted
        ]  # fmt: skip

    def retrieve(self, key: NamespaceKey, parts: Sequence[RetrievePart], retain: bool) -> str:
        """Copy chunks that L1 has into the pages: empty, or why these pages must not be trusted."""
        return next(filter(None, (self._retrieve_part(key, part, retain) for part in parts)), "")

    def _retrieve_part(self, key: NamespaceKey, part: RetrievePart, retain: bool) -> str:
        self._steps.reached("retrieve.check")
        place = self._l1.lock_key(key, self._rank_group, part.digest, retain=retain)
        if place is None:
            return "it was evicted or cleared"
        try:
            held = self._l1.describe(place)
            if held is None or held.length != self._chunk_bytes:
                return "its place does not fit this engine"
            self._copier.scatter(self._slot(held.offset, held.length), part.first_block, part.block_ids)
            self._steps.reached("retrieve.copied")
            return "" if self._l1.holds(place) else "it was cleared while it was read"
        finally:
            self._l1.unlock([place])

    def _slot(self, offset: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(self._pool.view(offset, length), dtype=np.uint8)
