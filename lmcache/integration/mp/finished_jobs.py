"""What transfers came to, until the engine's thread collects it."""

from __future__ import annotations

import threading
from collections import deque
from typing import TypeVar

from lmcache.integration.mp.jobs import LoadResult, StoreResult

Result = TypeVar("Result")


class FinishedJobs:
    """Added by copying threads, taken by one thread."""

    def __init__(self) -> None:
        self._stores: deque[StoreResult] = deque()
        self._loads: deque[LoadResult] = deque()
        self._ended = threading.Event()

    def add_store(self, result: StoreResult) -> None:
        self._stores.append(result)
        self._ended.set()

    def add_load(self, result: LoadResult) -> None:
        self._loads.append(result)
        self._ended.set()

    @property
    def has_loads(self) -> bool:
        return bool(self._loads)

    @property
    def is_empty(self) -> bool:
        return not self._stores and not self._loads

    def take(self) -> tuple[list[StoreResult], list[LoadResult]]:
        """Everything that was added since the last call. Next to free when there is nothing."""
        if self.is_empty:
            return [], []
        return _drain(self._stores), _drain(self._loads)

    def wait(self, timeout_s: float) -> None:
        """Until another one ends. Whoever waits looks at the results next: what ends meanwhile is not missed."""
        self._ended.wait(timeout_s)
        self._ended.clear()


def _drain(queue: deque[Result]) -> list[Result]:
    items = []
    while queue:
        items.append(queue.popleft())
    return items
