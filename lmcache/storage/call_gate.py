"""A bound on what operators ask of one adapter at once: a backend that hangs keeps them waiting, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lmcache.errors import BackendError, BreakerOpenError

_CALLS_AT_ONCE_MAX = 8
_CALL_PATIENCE_S = 10.0
_CHANGE_PATIENCE_S = 30.0


class CallGate:
    """Thread-safe. `name`: the adapter, in errors."""

    def __init__(
        self, name: str, call_patience_s: float = _CALL_PATIENCE_S, change_patience_s: float = _CHANGE_PATIENCE_S
    ) -> None:
        self._name = name
        self._call_patience_s = call_patience_s
        self._change_patience_s = change_patience_s
        self._calls = threading.BoundedSemaphore(_CALLS_AT_ONCE_MAX)
        self._change = threading.Lock()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Raises BreakerOpenError where too many calls do not come back."""
        if not self._calls.acquire(timeout=self._call_patience_s):
            raise BreakerOpenError(f"L2 adapter {self._name} has {_CALLS_AT_ONCE_MAX} calls to answer already")
        try:
            yield
        finally:
            self._calls.release()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One change of the adapter's settings after the other. Raises BackendError where one takes too long."""
        if not self._change.acquire(timeout=self._change_patience_s):
            raise BackendError(f"another change of L2 adapter {self._name} is under way")
        try:
            yield
        finally:
            self._change.release()
