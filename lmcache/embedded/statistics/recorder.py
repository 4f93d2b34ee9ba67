"""Takes note of lookups in the thread that makes them, and has a thread of its own count their chunks.

A lookup pays for a glance at a table and a place in a queue, never for hashing, disks or a full queue.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from lmcache.core.hashing import ChunkHashAlgorithm
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.statistics.base import CountingStrategy, Record
from lmcache.embedded.statistics.counter import ChunkCounter, hash_tail
from lmcache.embedded.statistics.limits import AutoExitLimits
from lmcache.embedded.statistics.record_queue import Clear, End, RecordQueue
from lmcache.embedded.statistics.timing import LookupTimes
from lmcache.errors import LMCacheError, TokenRangeError

logger = logging.getLogger(__name__)

THREAD_NAME = "lmcache-chunk-statistics"
# Lookup ids that are remembered as counted; a request is looked up again within seconds, or never.
_KNOWN_IDS_MAX = 100_000
_RESET_WAIT_S = 5.0
_CLOSE_WAIT_S = 2.0


class ChunkStatisticsRecorder:
    """Thread-safe. `limits` is asked anew with every lookup that is recorded.

    `hashes_early`: the tail of a prompt is hashed when it is recorded. The mutex guards all but the queue's other
    end and what the counting thread owns; neither hashing nor I/O is done under it.
    """

    def __init__(
        self,
        strategy: CountingStrategy,
        algorithm: ChunkHashAlgorithm,
        queue_capacity: int,
        limits: Callable[[], AutoExitLimits],
        hashes_early: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._strategy = strategy
        self._algorithm = algorithm
        self._limits = limits
        self._hashes_early = hashes_early
        self._clock = clock
        self._wall_clock = wall_clock
        self._counter = ChunkCounter(strategy, algorithm)
        self._queue = RecordQueue(queue_capacity)
        self._mutex = threading.Lock()
        self._reset_mutex = threading.Lock()
        self._is_collecting = False
        self._is_closed = False
        self._is_hurried = False
        self._first_record_s: float | None = None
        self._known_ids: dict[str, None] = {}
        self._times = LookupTimes()
        self._thread: threading.Thread | None = None
        self._num_failed = 0

    # By operators

    @property
    def is_collecting(self) -> bool:
        return self._is_collecting

    def start(self) -> None:
        """Count from now on; what was counted before stays. No effect while counting, and after `close`."""
        with self._mutex:
            if self._is_collecting or self._is_closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
            self._first_record_s = None
            self._is_collecting = True

    def stop(self) -> None:
        """Lookups are not recorded any more; those that were are still counted."""
        with self._mutex:
            self._is_collecting = False

    def reset(self, wait_s: float = _RESET_WAIT_S) -> None:
        """Count what was recorded before, then begin at nothing. Raises LMCacheError where that takes too long;
        it is done later then, at its place in the queue."""
        deadline_s = time.monotonic() + wait_s
        text = f"what was recorded before is still being counted after {wait_s:g} s; all is reset when that is done"
        if not self._reset_mutex.acquire(timeout=wait_s):
            raise LMCacheError(text)
        try:
            order = Clear()
            with self._mutex:
                self._known_ids.clear()
                self._times = LookupTimes()
                self._queue.forget_marks()
                if self._thread is None:
                    return
                self._queue.order(order)
            if not order.done.wait(max(0.0, deadline_s - time.monotonic())):
                raise LMCacheError(text)
        finally:
            self._reset_mutex.release()

    def status(self) -> dict[str, object]:
        """For JSON. Waits for nobody who counts or writes."""
        counts = self._counter.counts.figures()
        with self._mutex:
            is_collecting, timing = self._is_collecting, self._times.figures()
        return {
            "enabled": is_collecting,
            "is_collecting": is_collecting,
            **counts,
            "timing": timing,
            "async_queue": self._queue.figures() | {"failed_records": self._num_failed},
            self._strategy.name: self._strategy.figures(),
            "timestamp": self._wall_clock(),
            **self._limits().figures(),
        }

    def close(self) -> None:
        """Ends the thread, within a few seconds; what still waits is counted only if that leaves a trace."""
        with self._mutex:
            self._is_collecting, self._is_closed = False, True
            thread, self._thread = self._thread, None
            self._is_hurried |= not self._strategy.is_lasting
            if thread is not None:
                self._queue.order(End())
        if thread is None:
            return
        thread.join(_CLOSE_WAIT_S)
        if thread.is_alive():
            self._is_hurried = True
            thread.join(_CLOSE_WAIT_S)
        if thread.is_alive():
            logger.warning("chunk statistics: the thread that counts hangs, and is left behind")

    # By lookups

    def record(self, lookup_id: str, prompt: Prompt, lookup_s: float) -> None:
        """Have the chunks of this lookup, which took `lookup_s`, counted, unless its id was counted before."""
        if not self._is_collecting:
            return
        began_s = self._clock()
        is_recorded = self._is_unknown(lookup_id) and self._put(lookup_id, prompt)
        recorded_s = self._clock()
        if is_recorded:
            self._check_limits()
        ended_s = self._clock()
        with self._mutex:
            self._times.lookup_s += lookup_s
            self._times.record_s += recorded_s - began_s
            self._times.check_s += ended_s - recorded_s

    def _is_unknown(self, lookup_id: str) -> bool:
        with self._mutex:
            return lookup_id not in self._known_ids

    def _put(self, lookup_id: str, prompt: Prompt) -> bool:
        """Whether it will be counted."""
        if self._hashes_early:
            with contextlib.suppress(TokenRangeError):  # the thread that counts will tell
                prompt = hash_tail(prompt, self._algorithm)
        record = Record(lookup_id, self._wall_clock(), prompt)
        with self._mutex:
            if not self._is_collecting or lookup_id in self._known_ids or not self._queue.put(record):
                return False
            self._known_ids[lookup_id] = None
            if len(self._known_ids) > _KNOWN_IDS_MAX:
                del self._known_ids[next(iter(self._known_ids))]
            if self._first_record_s is None:
                self._first_record_s = self._clock()
        return True

    def _check_limits(self) -> None:
        limits, num_unique = self._limits(), self._counter.counts.num_unique
        with self._mutex:
            if not self._is_collecting or self._first_record_s is None:
                return
            reason = limits.reason_to_stop(self._clock() - self._first_record_s, num_unique)
            self._is_collecting = not reason
        if reason:
            logger.info("chunk statistics end by themselves: %s", reason)

    # The thread that counts

    def _run(self) -> None:
        while True:
            entry = self._queue.take()
            if isinstance(entry, Record):
                self._count(entry)
                self._queue.finish(entry)
                time.sleep(0)  # the interpreter goes to the thread of lookups, if that waits for it
            elif isinstance(entry, Clear):
                self._counter.clear()
                self._num_failed = 0
                entry.done.set()
            if isinstance(entry, End) or self._is_hurried:
                break
        self._strategy.close()

    def _count(self, record: Record) -> None:
        try:
            self._counter.count(record)
            self._check_limits()
        except Exception:  # the root of this thread: count on with the next lookup
            if not self._num_failed:
                logger.exception("the chunks of a lookup could not be counted")
            self._num_failed += 1
