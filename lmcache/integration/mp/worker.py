"""A worker's transfers: copies between the engine's pages and the pool, in threads of their own.

Loads go before stores: a store looks for waiting loads after each chunk. A load asks the
server nothing; it checks the slot before and after each copy. Whatever goes wrong, a job
ends with a result, so that nobody waits for ever.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.errors import LMCacheError, RequestRefusedError, ServerUnavailableError
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, LoadResult, StoreJob, StoreOutcome, StoreResult
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.membership import Joined, Membership
from lmcache.kv_copy.base import KVCopier
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots, split_places
from lmcache.telemetry.steps import NO_STEPS, StepObserver
from lmcache.transport.client import Connection

logger = logging.getLogger(__name__)

_RESERVED = 0  # l1.manager.ReserveStatus.RESERVED on the wire
_NO_ROOM = 3


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
    chunks_per_batch: int = 32


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
    ) -> None:
        self._config = config
        self._copier = copier
        self._membership = membership
        self._ledger = ledger
        self._clock = clock
        self._steps = steps
        self._chunk_bytes = copier.block_bytes * config.blocks_per_chunk
        self._batch_ids = itertools.count(time.time_ns())
        self._loads: deque[_LoadRun] = deque()
        self._stores: deque[tuple[float, StoreJob]] = deque()
        self._pending_store_bytes = 0
        self._finished_loads: deque[LoadResult] = deque()
        self._finished_stores: deque[StoreResult] = deque()
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
        run = _LoadRun(job, self._clock() + self._config.load_timeout_s, self._clock())
        if not job.chunks:
            self._finished_loads.append(LoadResult(job.request_id, True))
            return
        with self._work:
            self._loads.append(run)
            self._work.notify_all()

    def load_now(self, job: LoadJob) -> LoadResult:
        """Copy in the calling thread, for an engine that waits for it."""
        run = _LoadRun(job, self._clock() + self._config.load_timeout_s, self._clock())
        while (chunk := run.next_chunk()) is not None:
            self._load_chunk(run, chunk)
        return run.result(self._clock())

    def submit_store(self, job: StoreJob) -> None:
        """Dropped at once if too many bytes wait already; a drop costs a later miss, no more."""
        num_bytes = len(job.digests) * self._chunk_bytes
        with self._work:
            is_full = self._pending_store_bytes + num_bytes > self._config.pending_store_bytes_max
            if not self._config.stores or is_full or self._stopping:
                outcome = StoreOutcome.DROPPED if self._config.stores else StoreOutcome.SKIPPED
                self._finished_stores.append(StoreResult(job.job_id, outcome))
                return
            self._pending_store_bytes += num_bytes
            self._stores.append((self._clock() + self._config.store_timeout_s, job))
            self._work.notify()

    def take_finished(self) -> tuple[list[StoreResult], list[LoadResult]]:
        """Everything that ended since the last call. Next to free when there is nothing."""
        if not self._finished_stores and not self._finished_loads:
            return [], []
        return _drain(self._finished_stores), _drain(self._finished_loads)

    @property
    def num_pending(self) -> int:
        with self._work:
            return len(self._loads) + len(self._stores)

    # The copying threads

    def _run(self) -> None:
        _restore_affinity()
        link = _Link(self._membership)
        while True:
            with self._work:
                while not self._loads and not self._stores and not self._stopping:
                    self._work.wait()
                if self._stopping:
                    break
                stored = self._stores.popleft() if not self._loads else None
            if stored is None:
                self._help_with_loads()
            else:
                self._run_store(link, *stored)
        link.close()

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
                self._finished_loads.append(run.result(self._clock()))

    def _load_chunk(self, run: _LoadRun, chunk: LoadChunk) -> None:
        if run.error:
            return
        try:
            run.error = self._copy_in(run, chunk)
        except Exception as error:  # the root of a copy: a failed load, never a lost one
            logger.exception("a load failed")
            run.error = f"{type(error).__name__}: {error}"
        run.num_bytes += len(chunk.block_ids) * self._copier.block_bytes

    def _copy_in(self, run: _LoadRun, chunk: LoadChunk) -> str:
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
        self._copier.scatter(slot, chunk.first_block, chunk.block_ids)
        self._steps.reached("load.copied")
        if not mapping.slots.holds(place.slot, place.slot_word):
            return "it was evicted or cleared while it was read"
        return ""

    def _run_store(self, link: _Link, deadline_s: float, job: StoreJob) -> None:
        begun_s = self._clock()
        stored: list[bytes] = []
        outcome = StoreOutcome.SKIPPED
        try:
            step = self._config.chunks_per_batch
            for start in range(0, len(job.digests), step):
                if self._clock() > deadline_s or self._stopping:
                    outcome = StoreOutcome.DROPPED
                    break
                digests, block_ids = job.digests[start : start + step], job.block_ids[start : start + step]
                batch = self._store_batch(link, job, digests, block_ids)
                stored += batch[0]
                outcome = batch[1]
                if outcome in (StoreOutcome.NO_ROOM, StoreOutcome.FAILED):
                    break
        except Exception:  # the root of a job: a failed store is a later miss
            logger.exception("a store failed")
            outcome = StoreOutcome.FAILED
        if stored and outcome is StoreOutcome.SKIPPED:
            outcome = StoreOutcome.STORED
        with self._work:
            self._pending_store_bytes -= len(job.digests) * self._chunk_bytes
        num_bytes = len(stored) * self._chunk_bytes
        self._finished_stores.append(
            StoreResult(job.job_id, outcome, tuple(stored), num_bytes, self._clock() - begun_s)
        )

    def _store_batch(
        self, link: _Link, job: StoreJob, digests: tuple[bytes, ...], block_ids: tuple[tuple[int, ...], ...]
    ) -> tuple[list[bytes], StoreOutcome]:
        """Reserve, copy, commit. Digests committed, and how it went."""
        joined = self._membership.current
        if joined is None:
            return [], StoreOutcome.FAILED
        batch_id = next(self._batch_ids)
        generation = self._ledger.generation()
        try:
            self._steps.reached("store.reserve")
            request = m.Reserve(batch_id, job.root, job.cache_salt, b"".join(digests))
            reply = link.call(joined, request, self._config.rpc_timeout_s)
            if not isinstance(reply, m.Reserved):
                return [], StoreOutcome.FAILED
        except LMCacheError as error:
            self._give_up(link, joined, batch_id, error)
            return [], StoreOutcome.FAILED
        self._steps.reached("store.granted")
        places = split_places(reply.places)
        slots = [(slot, word) for slot, word, _, _ in places]
        if not self._ledger.begin(generation, slots):
            self._give_up(link, joined, batch_id, None)
            return [], StoreOutcome.FAILED
        num_accepted = 0
        try:
            chosen = [index for index, status in enumerate(reply.statuses) if status == _RESERVED]
            for index, (_, _, offset, length) in zip(chosen, places, strict=True):
                if length != self._chunk_bytes or not joined.mapping.contains(offset, length):
                    raise LMCacheError(f"the server gave a slot of {length} bytes for a chunk of {self._chunk_bytes}")
                self._steps.reached("store.copy")
                self._copier.gather(block_ids[index], joined.mapping.bytes[offset : offset + length])
                self._help_with_loads()
            self._steps.reached("store.commit")
            num_accepted = self._commit(link, joined, batch_id, slots) if slots else 0
            self._steps.reached("store.answered")
        except Exception:
            self._give_up(link, joined, batch_id, None)
            raise
        finally:
            self._ledger.end(slots)
            if num_accepted != len(slots) and self._ledger.generation() != generation:
                # A registration meanwhile named these slots as being written: only the next one frees them.
                self._membership.refresh()
        if num_accepted != len(slots):
            return [], StoreOutcome.FAILED
        outcome = StoreOutcome.NO_ROOM if _NO_ROOM in reply.statuses else StoreOutcome.SKIPPED
        return [digests[index] for index in chosen], outcome

    def _commit(self, link: _Link, joined: Joined, batch_id: int, slots: list[tuple[int, int]]) -> int:
        """How many slots the server accepted. Without an answer: none, and it will be told at the next chance."""
        try:
            reply = link.call(joined, m.Commit(batch_id, pack_slots(slots)), self._config.rpc_timeout_s)
        except LMCacheError as error:
            self._give_up(link, joined, batch_id, error)
            return 0
        return reply.num_accepted if isinstance(reply, m.Committed) else 0

    def _give_up(self, link: _Link, joined: Joined, batch_id: int, error: LMCacheError | None) -> None:
        """Tell the server that this batch is over. What it does not hear, the next registration says."""
        if isinstance(error, RequestRefusedError) and error.code not in (m.ErrorCode.UNREGISTERED,):
            logger.debug("the server refused a store: %s", error)
        if not link.post(joined, m.AbortBatch(batch_id)):
            self._membership.lose(joined.boot_id)


class _LoadRun:
    """A load under way, shared by the threads that copy its chunks."""

    def __init__(self, job: LoadJob, deadline_s: float, begun_s: float) -> None:
        self.job = job
        self.deadline_s = deadline_s
        self.error = ""
        self.num_bytes = 0
        self._begun_s = begun_s
        self._next = 0
        self._left = len(job.chunks)
        self._mutex = threading.Lock()

    def next_chunk(self) -> LoadChunk | None:
        with self._mutex:
            if self._next == len(self.job.chunks):
                return None
            self._next += 1
            return self.job.chunks[self._next - 1]

    def chunk_done(self) -> bool:
        """True for the thread that finished the last chunk."""
        with self._mutex:
            self._left -= 1
            return self._left == 0

    def result(self, now_s: float) -> LoadResult:
        return LoadResult(self.job.request_id, not self.error, self.num_bytes, now_s - self._begun_s, self.error)


class _Link:
    """One copying thread's connection, made anew when the server's address or boot changes."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._connection: Connection | None = None
        self._boot_id = 0

    def call(self, joined: Joined, message: m.Request, timeout_s: float) -> m.Reply:
        try:
            return self._connected(joined).call(message, joined.boot_id, timeout_s)
        except ServerUnavailableError:
            self._membership.lose(joined.boot_id)
            raise
        except RequestRefusedError as error:
            if error.code == m.ErrorCode.UNREGISTERED:
                self._membership.lose(joined.boot_id)
            raise

    def post(self, joined: Joined, message: m.Request) -> bool:
        return self._connected(joined).post(message, joined.boot_id)

    def _connected(self, joined: Joined) -> Connection:
        if self._connection is None or self._boot_id != joined.boot_id:
            self.close()
            self._connection = Connection(joined.url, self._membership.client_uid)
            self._boot_id = joined.boot_id
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _drain(queue: deque) -> list:  # type: ignore[type-arg]
    items = []
    while queue:
        items.append(queue.popleft())
    return items


def _restore_affinity() -> None:
    """Engines bind the thread that starts us to one core; take the cores their parent process has too."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
    except OSError:
        return
