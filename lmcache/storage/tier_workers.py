"""The threads of a tier and the queues they empty: reads before stores, and one thread always left for reads.

A job that waited too long is answered without being done. Knows no adapter: a job is a callable.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

logger = logging.getLogger(__name__)

# Every thread of a tier stuck for so long: its backend hangs.
STALL_S = 30.0


class JobKind(StrEnum):
    READ = "read"
    STORE = "store"
    CHORE = "chore"


@dataclass(frozen=True, slots=True)
class Job:
    """`run` does it and answers; `skip` only answers."""

    run: Callable[[], None]
    skip: Callable[[], None]
    deadline_s: float | None = None


class TierWorkers:
    """Thread-safe. Takes jobs from `start` to `refuse`; what was taken then is still done, until `stop`."""

    def __init__(
        self, name: str, num_threads: int, reads_max: int, stores_max: int, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._num_threads = max(2, num_threads)
        self._reads_max = reads_max
        self._stores_max = stores_max
        self._clock = clock
        self._work = threading.Condition()
        self._reads: deque[Job] = deque()
        self._stores: deque[Job] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        # Chores that were taken and have not ended.
        self._chore_names: set[str] = set()
        self._running = dict.fromkeys(JobKind, 0)
        self._num_calls = 0
        self._busy_since_s: dict[int, float] = {}
        self._is_taking = False
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(self._num_threads)
        ]

    # Life

    def start(self) -> None:
        with self._work:
            self._is_taking = True
            for thread in self._threads:
                thread.start()

    def refuse(self) -> None:
        """Take no more jobs."""
        with self._work:
            self._is_taking = False

    def wait_until_idle(self, timeout_s: float) -> None:
        with self._work:
            self._work.wait_for(lambda: not self._has_work, timeout_s)

    def stop(self) -> None:
        """Nothing further begins; what still waits is answered without being done."""
        with self._work:
            self._is_taking, self._is_stopping = False, True
            skipped = [*self._reads, *self._stores]
            self._reads.clear()
            self._stores.clear()
            self._work.notify_all()
        for job in skipped:
            job.skip()

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def wait_until_stopping(self, timeout_s: float) -> None:
        with self._work:
            self._work.wait_for(lambda: self._is_stopping, timeout_s)

    def join(self, timeout_s: float) -> bool:
        """After `stop`: whether, within that time, nobody is in the adapter any more."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._work:  # who came in before `stop` may still be there
            self._work.wait_for(lambda: not self._num_calls, max(0.0, deadline_s - time.monotonic()))
            return not self.has_stuck_threads and not self._num_calls

    @property
    def has_stuck_threads(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    # Jobs

    def add_read(self, job: Job) -> bool:
        """False: no more reads are taken; nobody answers it."""
        with self._work:
            if not self._is_taking or len(self._reads) >= self._reads_max:
                return False
            self._reads.append(job)
            self._work.notify()
        return True

    def add_store(self, job: Job) -> bool:
        """False: no more stores are taken; nobody answers it."""
        with self._work:
            if not self._is_taking or len(self._stores) >= self._stores_max:
                return False
            self._stores.append(job)
            self._work.notify()
        return True

    def add_chore(self, name: str, work: Callable[[], None]) -> bool:
        """False: the one before of that name has not ended, or none are taken."""
        with self._work:
            if not self._is_taking or name in self._chore_names:
                return False
            self._chore_names.add(name)
            self._chores.append(functools.partial(self._do_chore, name, work))
            self._work.notify()
        return True

    def _do_chore(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            with self._work:
                self._chore_names.discard(name)

    def enter(self) -> bool:
        """Somebody goes into the adapter in a thread of their own, until `leave`. False: they must not any more."""
        with self._work:
            if self._is_stopping:
                return False
            self._num_calls += 1
            return True

    def leave(self) -> None:
        with self._work:
            self._num_calls -= 1
            self._work.notify_all()

    # Threads

    def _run(self) -> None:
        me = threading.get_ident()
        while True:
            with self._work:
                while (kind := self._next_kind()) is None:
                    if self._is_stopping:
                        return
                    self._work.wait()
                do = self._take(kind)
                self._running[kind] += 1
                self._busy_since_s[me] = self._clock()
            try:
                do()
            except Exception:  # the root of a job: a callback failed; log, go on
                logger.exception("a job of %s failed", self._name)
            with self._work:
                self._running[kind] -= 1
                del self._busy_since_s[me]
                self._work.notify_all()

    def _next_kind(self) -> JobKind | None:
        """What may be done now."""
        if self._is_stopping:
            return None
        if self._reads:
            return JobKind.READ
        if self._running[JobKind.STORE] + self._running[JobKind.CHORE] == self._num_threads - 1:
            return None
        if self._chores:
            return JobKind.CHORE
        return JobKind.STORE if self._stores else None

    def _take(self, kind: JobKind) -> Callable[[], None]:
        if kind is JobKind.CHORE:
            return self._chores.popleft()
        job = self._reads.popleft() if kind is JobKind.READ else self._stores.popleft()
        is_late = job.deadline_s is not None and self._clock() > job.deadline_s
        return job.skip if is_late else job.run

    # Telling

    @property
    def _has_work(self) -> bool:
        return bool(self._reads or self._stores or any(self._running.values()) or self._num_calls)

    @property
    def has_room_for_stores(self) -> bool:
        return len(self._stores) < self._stores_max

    @property
    def num_stores(self) -> int:
        """Queued or under way."""
        with self._work:
            return len(self._stores) + self._running[JobKind.STORE]

    @property
    def num_reads(self) -> int:
        """Queued or under way."""
        with self._work:
            return len(self._reads) + self._running[JobKind.READ]

    @property
    def num_busy(self) -> int:
        return len(self._busy_since_s)

    @property
    def is_stalled(self) -> bool:
        """Whether every thread has been at the same job for too long."""
        if len(self._busy_since_s) < self._num_threads:
            return False
        with self._work:
            begun = list(self._busy_since_s.values())
        return len(begun) == self._num_threads and self._clock() - max(begun) > STALL_S
