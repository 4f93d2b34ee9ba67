"""A worker's transfers: copies between the engine's pages and the pool, in threads of their own.

Loads go before stores: a store looks for waiting loads after each chunk. A load asks the
server nothing; it checks the slot before and after each copy. A store may be announced while
its pages are being computed. Whatever goes wrong, a job ends with a result, so that nobody
waits for ever.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.integration.mp.finished_jobs import FinishedJobs
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, LoadResult, StoreJob, StoreOutcome, StoreResult
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.load_run import LoadRun
from lmcache.integration.mp.membership import Membership
from lmcache.integration.mp.store_pipeline import StoreConfig, StorePipeline
from lmcache.integration.mp.store_queue import RunState, StoreQueue, StoreRun
from lmcache.kv_copy.affinity import restore_affinity
from lmcache.kv_copy.base import KVCopier
from lmcache.kv_copy.lossy_chunks import LossyChunks
from lmcache.protocol.messages import Transferred
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """`column`: this rank's place among those of a promised chunk. `stores`: whether this rank stores."""

    column: int
    blocks_per_chunk: int
    stores: bool = True
    num_threads: int = 1
    rpc_timeout_s: float = 5.0
    load_timeout_s: float = 30.0
    store_timeout_s: float = 60.0
    pending_store_bytes_max: int = 8 << 30
    first_batch_chunks: int = 2
    chunks_per_batch: int = 16


def _ignore(transferred: Transferred) -> None:
    """Nobody counts."""


class TransferWorker:
    """Submit from the engine's thread, collect with `take_finished`; copying happens elsewhere."""

    def __init__(
        self,
        config: TransferConfig,
        copier: KVCopier,
        membership: Membership,
        ledger: WriteLedger,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
        report: Callable[[Transferred], None] = _ignore,
    ) -> None:
        """`report` is told of every transfer that ended, in a copying thread. Must be quick."""
        self._config = config
        self._copier = copier
        self._membership = membership
        self._ledger = ledger
        self._clock = clock
        self._steps = steps
        self._report = report
        self._chunk_bytes = copier.block_bytes * config.blocks_per_chunk
        self._lossy = LossyChunks(copier.num_blocks)
        self._batch_ids = itertools.count(time.time_ns())
        self._loads: deque[LoadRun] = deque()
        self._stores = StoreQueue()
        self._pending_store_bytes = 0
        self._finished = FinishedJobs()
        self._num_loading = 0
        self._work = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"lmcache-copy-{number}", daemon=True)
            for number in range(config.num_threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being copied, give up the rest."""
        with self._work:
            self._stopping = True
            self._work.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # The engine's side

    def submit_load(self, job: LoadJob) -> None:
        run = LoadRun(job, self._clock() + self._config.load_timeout_s, self._clock())
        if not job.chunks:
            self._finished.add_load(LoadResult(job.request_id, True))
            return
        with self._work:
            self._num_loading += 1
            self._loads.append(run)
            self._work.notify_all()

    def load_now(self, job: LoadJob) -> LoadResult:
        """Copy in the calling thread, for an engine that waits for it."""
        run = LoadRun(job, self._clock() + self._config.load_timeout_s, self._clock())
        while (chunk := run.next_chunk()) is not None:
            self._load_chunk(run, chunk)
        result = run.result(self._clock())
        self._tell_load(job, result)
        return result

    def announce_store(self, job: StoreJob) -> None:
        """Its pages are being computed: have its first places ready when `submit_store` brings this very job.

        Replaces what was announced before. Costs nothing if the job never comes.
        """
        with self._work:
            if self._config.stores and not self._stopping:
                self._stores.announce(job, self._clock() + self._config.store_timeout_s)
                self._work.notify_all()

    def withdraw_store(self) -> None:
        """What was announced and not submitted will not come."""
        with self._work:
            self._withdraw()

    def _withdraw(self) -> None:
        """Under `_work`."""
        if self._stores.withdraw():
            self._work.notify_all()

    def submit_store(self, job: StoreJob) -> None:
        """Dropped at once if too many bytes wait already; a drop costs a later miss, no more."""
        num_bytes = len(job.digests) * self._chunk_bytes
        with self._work:
            is_full = self._pending_store_bytes + num_bytes > self._config.pending_store_bytes_max
            if not self._config.stores or is_full or self._stopping:
                outcome = StoreOutcome.DROPPED if self._config.stores else StoreOutcome.SKIPPED
                self._finished.add_store(StoreResult(job.job_id, outcome))
                self._withdraw()
                return
            self._pending_store_bytes += num_bytes
            self._stores.submit(job, self._clock() + self._config.store_timeout_s)
            # All of them: the thread that prepares this store may not be the first to wait.
            self._work.notify_all()

    def take_finished(self) -> tuple[list[StoreResult], list[LoadResult]]:
        """Everything that ended since the last call. Next to free when there is nothing."""
        return self._finished.take()

    def wait_for_load(self, timeout_s: float) -> None:
        """For an engine that has nothing else to do: wait until a load ends, if one is under way.

        An engine that polls instead would fight the copying threads for the interpreter.
        """
        if self._num_loading and not self._finished.has_loads:
            self._finished.wait(timeout_s)

    def wait_for_any(self, timeout_s: float) -> None:
        """As `wait_for_load`, for a store too."""
        if self._finished.is_empty:
            self._finished.wait(timeout_s)

    # The copying threads

    def _run(self) -> None:
        restore_affinity()
        stores = self._make_pipeline()
        while True:
            with self._work:
                while not self._loads and not self._stores.has_work and not self._stopping:
                    self._work.wait()
                if self._stopping:
                    break
                run = self._stores.take() if not self._loads else None
            if run is None:
                self._help_with_loads()
            else:
                self._run_store(stores, run)
        stores.close()

    def _make_pipeline(self) -> StorePipeline:
        config = StoreConfig(
            self._chunk_bytes,
            self._config.first_batch_chunks,
            self._config.chunks_per_batch,
            self._config.rpc_timeout_s,
        )
        return StorePipeline(
            config, self._copier, self._lossy, self._membership, self._ledger, lambda: next(self._batch_ids),
            self._help_with_loads, self._await_pages, lambda: self._stopping, self._clock, self._steps,
        )  # fmt: skip

    def _help_with_loads(self) -> None:
        """Take chunks of waiting loads until none is left; several threads may share one load."""
        while True:
            with self._work:
                if not self._loads:
                    return
                run = self._loads[0]
                chunk = run.next_chunk()
                if chunk is None:
                    self._loads.popleft()
                    continue
            self._load_chunk(run, chunk)
            if run.chunk_done():
                result = run.result(self._clock())
                with self._work:
                    self._num_loading -= 1
                self._finished.add_load(result)
                self._tell_load(run.job, result)

    def _load_chunk(self, run: LoadRun, chunk: LoadChunk) -> None:
        if run.error:
            return
        try:
            failure = self._copy_in(run, chunk)
        except Exception as error:  # the root of a copy: a failed load, never a lost one
            logger.exception("a load failed")
            failure = f"{type(error).__name__}: {error}"
        if failure:
            run.fail(failure)
        else:
            run.copied(len(chunk.block_ids) * self._copier.block_bytes)

    def _copy_in(self, run: LoadRun, chunk: LoadChunk) -> str:
        """Empty, or why these bytes must not be trusted."""
        joined = self._membership.last
        place = chunk.ranks[self._config.column]
        if self._clock() > run.deadline_s:
            return "it took too long"
        if joined is None or joined.mapping.pool_id != run.job.pool_id:
            return "the pool it was promised in is gone"
        mapping = joined.mapping
        if place.length != self._chunk_bytes or not mapping.contains(place.offset, place.length):
            return "its place does not fit this engine"
        self._steps.reached("load.check")
        if not mapping.slots.holds(place.slot, place.slot_word) or not mapping.slots.has_digest(
            place.slot, place.digest
        ):
            return "it was evicted or cleared"
        slot = mapping.bytes[place.offset : place.offset + place.length]
        self._steps.reached("load.copy")
        if mapping.slots.is_lossy(place.slot):
            self._lossy.add(place.digest)
        self._copier.scatter(slot, chunk.first_block, chunk.block_ids)
        self._steps.reached("load.copied")
        if not mapping.slots.holds(place.slot, place.slot_word):
            return "it was evicted or cleared while it was read"
        return ""

    def _await_pages(self, run: StoreRun) -> bool:
        """Wait until an announced store is submitted; loads are served meanwhile. False: it will not be."""
        while True:
            with self._work:
                while run.state is RunState.PREPARING and not self._loads and not self._stopping:
                    left_s = run.deadline_s - self._clock()
                    if left_s <= 0 or not self._work.wait(left_s):
                        return False
                if run.state is not RunState.PREPARING or self._stopping:
                    return run.state is RunState.READY and not self._stopping
            self._help_with_loads()

    def _run_store(self, stores: StorePipeline, run: StoreRun) -> None:
        result = stores.run(run)
        with self._work:
            if not self._stores.close(run):
                return
            self._pending_store_bytes -= len(run.job.digests) * self._chunk_bytes
        self._finished.add_store(result)
        if result.stored:
            self._report(
                Transferred(False, len(result.stored), result.num_bytes, result.duration_s, run.job.cache_salt)
            )

    def _tell_load(self, job: LoadJob, result: LoadResult) -> None:
        self._report(
            Transferred(True, len(job.chunks), result.num_bytes, result.duration_s, job.cache_salt, result.is_ok)
        )
