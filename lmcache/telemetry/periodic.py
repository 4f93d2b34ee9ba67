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
    """Calls `body` every `interval_s`. What `body` returns is shown as the run's extra info.

    A failing run is logged and counted; the loop goes on.
    """

    def __init__(
        self, name: str, level: ThreadLevel, interval_s: float, body: RunBody, init_wait_s: float = 0.0
    ) -> None:
        self.name = name
        self.level = level
        self.interval_s = interval_s
        self.init_wait_s = init_wait_s
        self._body = body
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started_at = 0.0
        self.last_run_time = 0.0
        self.total_runs = 0
        self.failed_runs = 0
        self.last_summary: RunSummary | None = None

    def start(self) -> None:
        self._started_at = time.time()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def last_run_ago_s(self) -> float | None:
        return time.time() - self.last_run_time if self.last_run_time else None

    @property
    def is_active(self) -> bool:
        if not self.is_running:
            return False
        ago_s = self.last_run_ago_s()
        if ago_s is None:
            return time.time() - self._started_at < self.init_wait_s + _ACTIVE_INTERVALS * self.interval_s
        return ago_s < _ACTIVE_INTERVALS * self.interval_s

    def _run(self) -> None:
        wait_s = self.init_wait_s
        while not self._stop.wait(wait_s):
            self._run_once()
            wait_s = self.interval_s

    def _run_once(self) -> None:
        started = time.time()
        begun = time.perf_counter()
        success, message, extra_info = True, "", {}
        try:
            extra_info = self._body()
        except Exception as error:  # the root of a thread: log, count, go on
            success, message = False, f"{type(error).__name__}: {error}"
            self.failed_runs += 1
            logger.exception("periodic thread %s failed", self.name)
        self.total_runs += 1
        self.last_run_time = started
        self.last_summary = RunSummary(started, (time.perf_counter() - begun) * 1000, success, message, extra_info)


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

    def stop_all(self) -> None:
        for thread in self.all():
            thread.stop()
        with self._mutex:
            self._threads.clear()
