"""A load under way: its chunks handed out one by one, to one thread or to several."""

from __future__ import annotations

import threading

from lmcache.integration.mp.jobs import LoadChunk, LoadJob, LoadResult


class LoadRun:
    """Thread-safe. One `error` fails the whole load; the chunks left are then only counted off."""

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

    def fail(self, error: str) -> None:
        """The load has failed, whatever its other chunks come to. The first error is kept."""
        with self._mutex:
            self.error = self.error or error

    def copied(self, num_bytes: int) -> None:
        with self._mutex:
            self.num_bytes += num_bytes

    def result(self, now_s: float) -> LoadResult:
        return LoadResult(self.job.request_id, not self.error, self.num_bytes, now_s - self._begun_s, self.error)
