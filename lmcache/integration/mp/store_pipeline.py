"""Stores, a batch at a time: reserve, copy, commit. The server works on one batch while we copy another.

    batch n:    reserve ...... granted, copy, commit ........ accepted
    batch n+1:    reserve ............ granted, copy, commit ...
    batch n+2:                 reserve ................ granted, copy, ...

A store that was announced has its first grant and waits for its pages; nothing is read before.
A batch that fails in any phase is given up, and so is what was begun after it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from lmcache.errors import LMCacheError
from lmcache.integration.mp.jobs import StoreJob, StoreOutcome, StoreResult
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.link import Link
from lmcache.integration.mp.membership import Joined, Membership
from lmcache.integration.mp.store_queue import RunState, StoreRun
from lmcache.kv_copy.base import KVCopier
from lmcache.kv_copy.lossy_chunks import LossyChunks
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots, split_places
from lmcache.telemetry.steps import StepObserver

logger = logging.getLogger(__name__)

_COMMITS_IN_FLIGHT_MAX = 4
_RESERVES_AHEAD = 2


@dataclass(slots=True, eq=False)
class _Batch:
    """`slots` are ours to write from `granted` until `settled`."""

    batch_id: int
    joined: Joined
    generation: int
    digests: tuple[bytes, ...]
    block_ids: tuple[tuple[int, ...], ...]
    number: int = 0
    statuses: bytes = b""
    slots: list[tuple[int, int]] = field(default_factory=list)
    places: list[tuple[int, int, int, int]] = field(default_factory=list)

    def chosen(self) -> list[int]:
        return [index for index, status in enumerate(self.statuses) if status == m.ReserveStatus.RESERVED]


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Batches double from `first_batch_chunks` up to `chunks_per_batch`."""

    chunk_bytes: int
    first_batch_chunks: int
    chunks_per_batch: int
    rpc_timeout_s: float


class StorePipeline:
    """Belongs to one copying thread.

    `between_chunks` may do other work; `await_pages` returns whether an announced store may be
    copied, once that is known; `is_stopping` ends a job early.
    """

    def __init__(
        self,
        config: StoreConfig,
        copier: KVCopier,
        lossy: LossyChunks,
        membership: Membership,
        ledger: WriteLedger,
        next_batch_id: Callable[[], int],
        between_chunks: Callable[[], None],
        await_pages: Callable[[StoreRun], bool],
        is_stopping: Callable[[], bool],
        clock: Callable[[], float],
        steps: StepObserver,
    ) -> None:
        self._config = config
        self._copier = copier
        self._lossy = lossy
        self._membership = membership
        self._ledger = ledger
        self._next_batch_id = next_batch_id
        self._between_chunks = between_chunks
        self._await_pages = await_pages
        self._is_stopping = is_stopping
        self._clock = clock
        self._steps = steps
        self._link = Link(membership)

    def close(self) -> None:
        self._link.close()

    def run(self, run: StoreRun) -> StoreResult:
        """Always a result: what was committed, and how it ended."""
        run.begun_s = self._clock()
        stored: list[bytes] = []
        try:
            outcome = self._run(run, stored)
        except LMCacheError as error:
            logger.debug("a store was given up: %s", error)
            outcome = StoreOutcome.FAILED
        except Exception:  # the root of a job: a failed store is a later miss
            logger.exception("a store failed")
            outcome = StoreOutcome.FAILED
        if stored and outcome is StoreOutcome.SKIPPED:
            outcome = StoreOutcome.STORED
        num_bytes = len(stored) * self._config.chunk_bytes
        return StoreResult(run.job.job_id, outcome, tuple(stored), num_bytes, self._clock() - run.begun_s)

    def _run(self, run: StoreRun, stored: list[bytes]) -> StoreOutcome:
        open_batches: list[_Batch] = []  # asked for and not settled; whatever ends the job gives them up
        try:
            return self._drive(run, stored, open_batches)
        finally:
            for batch in open_batches:
                self._give_up(batch)

    def _drive(self, run: StoreRun, stored: list[bytes], open_batches: list[_Batch]) -> StoreOutcome:
        joined = self._membership.current
        if joined is None:
            raise LMCacheError("no server")
        job = self._exact_chunks(run.job)
        reserves = (self._ask(job, part, joined, open_batches) for part in self._parts(run, len(job.digests)))
        asked = deque(islice(reserves, _RESERVES_AHEAD))
        committing: deque[_Batch] = deque()
        outcome = StoreOutcome.SKIPPED
        while asked and outcome is not StoreOutcome.NO_ROOM:
            batch = asked.popleft()
            self._take_grant(batch)
            if not self._may_copy(run):
                outcome = StoreOutcome.DROPPED
                break
            if m.ReserveStatus.NO_ROOM in batch.statuses:
                outcome = StoreOutcome.NO_ROOM  # what was asked for beyond this batch is given up
            else:
                asked += islice(reserves, 1)
            self._copy_out(batch)
            committing.append(batch)
            if len(committing) > _COMMITS_IN_FLIGHT_MAX:
                stored += self._settle(committing.popleft(), open_batches)
        while committing:
            stored += self._settle(committing.popleft(), open_batches)
        return StoreOutcome.DROPPED if self._is_late(run) else outcome

    def _may_copy(self, run: StoreRun) -> bool:
        """Whether the pages are complete and still wanted. Nothing of an announced store is read before."""
        if run.state is not RunState.READY:
            if not self._await_pages(run):
                return False
            run.begun_s = self._clock()
        return not self._is_late(run)

    def _is_late(self, run: StoreRun) -> bool:
        return self._clock() > run.deadline_s or self._is_stopping()

    def _exact_chunks(self, job: StoreJob) -> StoreJob:
        """The same without what a lossy tier left in the engine's prefix cache: no prefill would have computed it."""
        chosen = self._lossy.exact(job.digests, job.num_cached)
        if len(chosen) == len(job.digests):
            return job
        return dataclasses.replace(
            job,
            digests=tuple(job.digests[index] for index in chosen),
            block_ids=tuple(job.block_ids[index] for index in chosen),
        )

    def _parts(self, run: StoreRun, num_chunks: int) -> Iterator[slice]:
        """Batches that double in size: the first answer comes soon, and few are needed in all.

        An announced store has time to wait for a large one.
        """
        if self._is_late(run):
            return
        config, start = self._config, 0
        size = config.first_batch_chunks if run.state is RunState.READY else config.chunks_per_batch
        while start < num_chunks:
            yield slice(start, start + size)
            start, size = start + size, min(2 * size, config.chunks_per_batch)

    def _ask(self, job: StoreJob, part: slice, joined: Joined, open_batches: list[_Batch]) -> _Batch:
        if self._membership.current is not joined:
            raise LMCacheError("the registration this store began under is over")
        generation = self._ledger.generation()
        batch = _Batch(self._next_batch_id(), joined, generation, job.digests[part], job.block_ids[part])
        self._steps.reached("store.reserve")
        request = m.Reserve(batch.batch_id, job.root, job.cache_salt, b"".join(batch.digests), generation)
        open_batches.append(batch)
        batch.number = self._link.send(joined, request, self._config.rpc_timeout_s)
        return batch

    def _wait(self, batch: _Batch, what: str) -> m.Reply:
        """The answer to the batch's request; loads that wait meanwhile are served."""
        return self._link.wait(batch.joined, batch.number, self._config.rpc_timeout_s, what, self._between_chunks)

    def _take_grant(self, batch: _Batch) -> None:
        """Wait for the places. From here on the slots are ours, unless a registration came between."""
        reply = self._wait(batch, "Reserve")
        if not isinstance(reply, m.Reserved):
            raise LMCacheError(f"the server answered a reserve with {type(reply).__name__}")
        self._steps.reached("store.granted")
        places = split_places(reply.places)
        slots = [(slot, word) for slot, word, _, _ in places]
        if not self._ledger.begin(batch.generation, slots):
            raise LMCacheError("a registration crossed the reserve")
        batch.statuses, batch.places, batch.slots = reply.statuses, places, slots

    def _copy_out(self, batch: _Batch) -> None:
        """Copy every chosen chunk and send the commit."""
        memory = batch.joined.mapping.bytes
        for index, (_, _, offset, length) in zip(batch.chosen(), batch.places, strict=True):
            if length != self._config.chunk_bytes or not batch.joined.mapping.contains(offset, length):
                raise LMCacheError(f"a slot of {length} bytes for a chunk of {self._config.chunk_bytes}")
            self._steps.reached("store.copy")
            self._copier.gather(batch.block_ids[index], memory[offset : offset + length])
            self._between_chunks()
        self._steps.reached("store.commit")
        if batch.slots:
            commit = m.Commit(batch.batch_id, pack_slots(batch.slots))
            batch.number = self._link.send(batch.joined, commit, self._config.rpc_timeout_s)

    def _settle(self, batch: _Batch, open_batches: list[_Batch]) -> list[bytes]:
        """Wait for the commit's answer; the digests it made findable. Raises if it was refused."""
        if not batch.slots:
            # There was nothing to write: the server may forget the batch.
            self._link.post(batch.joined, m.AbortBatch(batch.batch_id))
            open_batches.remove(batch)
            return []
        reply = self._wait(batch, "Commit")
        self._steps.reached("store.answered")
        if not isinstance(reply, m.Committed) or reply.num_accepted != len(batch.slots):
            raise LMCacheError("the server refused a commit: it was too late, or the engine was reset")
        open_batches.remove(batch)
        self._ledger.end(batch.slots)
        return [batch.digests[index] for index in batch.chosen()]

    def _give_up(self, batch: _Batch) -> None:
        """Tell the server that this batch is over. What it does not hear, the next registration says."""
        self._link.forget(batch.number)
        if not self._link.post(batch.joined, m.AbortBatch(batch.batch_id)):
            self._membership.lose(batch.joined.boot_id)
        self._ledger.end(batch.slots)
        if batch.slots and self._ledger.generation() != batch.generation:
            # A registration meanwhile named these slots as being written: only the next one frees them.
            self._membership.refresh()
