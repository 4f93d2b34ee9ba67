"""A circuit breaker: leaves a backend alone that keeps failing, and tries it again by and by. Pure; time is given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """Opens after `failures_max` failures in a row, for `pause_s`, then twice that and so on up to `pause_s_max`."""

    failures_max: int = 5
    pause_s: float = 5.0
    pause_s_max: float = 60.0


class CircuitBreaker:
    """Thread-safe. While half open, one call at a time is let through; its outcome decides."""

    def __init__(self, config: BreakerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._mutex = threading.Lock()
        self._failures = 0
        self._pause_s = config.pause_s
        self._open_until_s: float | None = None
        self._is_trying = False
        self.num_opened = 0
        self.last_error = ""

    @property
    def state(self) -> BreakerState:
        with self._mutex:
            if self._open_until_s is None:
                return BreakerState.CLOSED
            return BreakerState.HALF_OPEN if self._clock() >= self._open_until_s else BreakerState.OPEN

    def allows(self) -> bool:
        """Whether a call may be made now; each True must be followed by `succeeded` or `failed`."""
        with self._mutex:
            if self._open_until_s is None:
                return True
            if self._is_trying or self._clock() < self._open_until_s:
                return False
            self._is_trying = True
            return True

    def succeeded(self) -> None:
        with self._mutex:
            self._failures = 0
            self._open_until_s = None
            self._is_trying = False
            self._pause_s = self._config.pause_s

    def failed(self, error: str) -> None:
        with self._mutex:
            self.last_error = error
            self._failures += 1
            if self._is_trying:
                self._pause_s = min(2 * self._pause_s, self._config.pause_s_max)
            elif self._failures < self._config.failures_max or self._open_until_s is not None:
                return
            self._is_trying = False
            self._open_until_s = self._clock() + self._pause_s
            self.num_opened += 1
