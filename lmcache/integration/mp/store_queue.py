"""Stores on their way to the copying threads, one of them perhaps before its pages are computed.

    announce --> ANNOUNCED --a thread takes it--> PREPARING --submit--> READY --> one result
                      |                               |
                      +--another announce or submit---+--stop, time-out, failure--> VOID, no result

Announced stores only ask for their first places. Nobody reads a page before READY, and only
`submit` makes a run READY; so a store is reported once for each `submit`, never for an announcement.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from lmcache.integration.mp.jobs import StoreJob


class RunState(Enum):
    ANNOUNCED = auto()
    PREPARING = auto()
    READY = auto()
    VOID = auto()


@dataclass(slots=True, eq=False)
class StoreRun:
    """One store under way. `begun_s`: since when a thread works on its pages."""

    job: StoreJob
    deadline_s: float
    state: RunState
    begun_s: float = 0.0


class StoreQueue:
    """Not thread-safe: guarded by the condition its owner's threads wait on. At most one run is announced."""

    def __init__(self) -> None:
        self._ready: deque[StoreRun] = deque()
        self._announced: StoreRun | None = None

    @property
    def has_work(self) -> bool:
        """Whether `take` has something."""
        announced = self._announced
        return bool(self._ready) or (announced is not None and announced.state is RunState.ANNOUNCED)

    def announce(self, job: StoreJob, deadline_s: float) -> None:
        self.withdraw()
        self._announced = StoreRun(job, deadline_s, RunState.ANNOUNCED)

    def withdraw(self) -> bool:
        """The announced store will not come; whoever prepares it gives its slots back. False if there was none."""
        run, self._announced = self._announced, None
        if run is None:
            return False
        run.state = RunState.VOID
        return True

    def submit(self, job: StoreJob, deadline_s: float) -> None:
        """The pages are there. Anything else that was announced is void: jobs come in the order they were announced."""
        run = self._announced
        if run is None or run.job is not job:
            self.withdraw()
            self._ready.append(StoreRun(job, deadline_s, RunState.READY))
            return
        self._announced = None
        if run.state is RunState.ANNOUNCED:
            self._ready.append(run)
        run.deadline_s, run.state = deadline_s, RunState.READY

    def take(self) -> StoreRun | None:
        """The next run for a thread: what is ready comes before what is announced."""
        if self._ready:
            return self._ready.popleft()
        run = self._announced
        if run is None or run.state is not RunState.ANNOUNCED:
            return None
        run.state = RunState.PREPARING
        return run

    def close(self, run: StoreRun) -> bool:
        """A thread is done with a run. False: it was never submitted, so nobody waits for its result.

        A preparation that failed is forgotten: submitted later, its job starts afresh.
        """
        if run.state is RunState.READY:
            return True
        if self._announced is run:
            self._announced = None
        run.state = RunState.VOID
        return False
