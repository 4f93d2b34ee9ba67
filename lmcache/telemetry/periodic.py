"""Periodic threads: loops with a name, a level and a record of how they fare."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

logger = logging.getLogger(__name__)

# A loop that has not run for this many intervals is no longer active.
_ACTIVE_INTERVALS = 3


class ThreadLevel(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class RunSummary:
    timestamp: float
    duration_ms: float
    success: bool
    message: str
    extra_info: dict[str, object]


RunBody = Callable[[], dict[str, object]]


class PeriodicThread:
    """Calls `body` every `interval_s`, and early when woken or where `next_run_in_s` says so. What `body`
    returns is shown as the run's extra info.

    A failing run is logged and counted; the loop goes on. `last_run_time` is the start of the
    last run that ended (seconds since 1970; 0: none yet). Whether the loop is active is told by
    `clock`: a run that hangs makes it inactive, however lately the run before it ended.
    """

    def __init__(
        self,
        name: str,
        level: ThreadLevel,
        interval_s: float,
        body: RunBody,
        init_wait_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        next_run_in_s: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.level = level
        self.interval_s = interval_s
        self.init_wait_s = init_wait_s
        self._body = body
        self._next_run_in_s = next_run_in_s
        self._clock = clock
        self._is_stopping = False
        # Set: there is a reason not to wait, an early run or the end.
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # When the loop last showed life: a run began or ended.
        self._seen_s: float | None = None
        self._started_s = 0.0
        self._last_run_s: float | None = None
        self.last_run_time = 0.0
        self.last_summary: RunSummary | None = None
        # All of them, and those that failed; replaced as one.
        self._runs = (0, 0)

    def start(self) -> None:
        self._started_s = self._clock()
        self._thread.start()

    def wake(self) -> None:
        """Run the body at once; if it is running, once more right after. Any thread; never waits for the body.

        What was done before this call is seen by a run that begins after it. Several calls
        before that run begins are one.
        """
        self._awake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def ask_to_stop(self) -> None:
        """No further run begins. Does not wait for one that goes on."""
        self._is_stopping = True
        self._awake.set()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def total_runs(self) -> int:
        """What else is told of a run is told when it counts here."""
        return self._runs[0]

    @property
    def failed_runs(self) -> int:
        return self._runs[1]

    @property
    def success_percent(self) -> float | None:
        """None before the first run ended."""
        total, failed = self._runs
        return 100.0 * (total - failed) / total if total else None

    def last_run_ago_s(self) -> float | None:
        return None if self._last_run_s is None else self._clock() - self._last_run_s

    @property
    def is_active(self) -> bool:
        if not self.is_running:
            return False
        patience_s = _ACTIVE_INTERVALS * self.interval_s
        if self._seen_s is None:
            return self._clock() - self._started_s < self.init_wait_s + patience_s
        return self._clock() - self._seen_s < patience_s

    def _run(self) -> None:
        wait_s = self.init_wait_s
        while True:
            self._awake.wait(wait_s)
            self._awake.clear()  # before the run: who wakes during it means another one
            if self._is_stopping:
                return
            self._run_once()
            wait_s = self.interval_s
            if self._next_run_in_s is not None:
                wait_s = max(0.0, min(wait_s, self._next_run_in_s()))

    def _run_once(self) -> None:
        started, started_s = time.time(), self._clock()
        self._seen_s = started_s
        begun = time.perf_counter()
        success, message, extra_info = True, "", {}
        try:
            extra_info = self._body()
        except Exception as error:  # the root of a thread: log, count, go on
            success, message = False, f"{type(error).__name__}: {error}"
            logger.exception("periodic thread %s failed", self.name)
        self.last_run_time, self._last_run_s = started, started_s
        self.last_summary = RunSummary(started, (time.perf_counter() - begun) * 1000, success, message, extra_info)
        self._seen_s = self._clock()
        total, failed = self._runs
        self._runs = (total + 1, failed + (not success))


class PeriodicThreadRegistry:
    """All periodic threads of a process, in order of creation. Thread-safe."""

    def __init__(self) -> None:
        self._threads: dict[str, PeriodicThread] = {}
        self._mutex = threading.Lock()

    def start(self, thread: PeriodicThread) -> None:
        with self._mutex:
            if thread.name in self._threads:
                raise ValueError(f"a periodic thread {thread.name} exists already")
            self._threads[thread.name] = thread
        thread.start()

    def all(self) -> list[PeriodicThread]:
        with self._mutex:
            return list(self._threads.values())

    def get(self, name: str) -> PeriodicThread | None:
        with self._mutex:
            return self._threads.get(name)

    def stop_all(self) -> None:
        threads = self.all()
        for thread in threads:
            thread.ask_to_stop()
        for thread in threads:
            thread.stop()
        with self._mutex:
            self._threads.clear()
