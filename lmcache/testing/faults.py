"""Faults at named steps: an observer that kills, stops or delays its own process, exactly there.

Knows the names of steps, not their meaning.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec


class Action(StrEnum):
    KILL = "kill"  # SIGKILL to the process
    STOP = "stop"  # SIGSTOP to the process, until somebody sends SIGCONT
    DELAY = "delay"  # only the thread waits, the rest of its process goes on


class Fault(msgspec.Struct, frozen=True):
    """What happens at the `occurrence`-th time that `step` is reached from now on."""

    step: str
    action: Action
    occurrence: int = 1
    delay_s: float = 0.5


class FaultObserver:
    """A `StepObserver`. Thread-safe; at most one fault is armed, and it happens once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        """`announce` is told the step right before its fault happens."""
        self._announce = announce
        self._mutex = threading.Lock()
        self._fault: Fault | None = None
        self._num_left = 0

    def arm(self, fault: Fault | None) -> None:
        """None disarms."""
        with self._mutex:
            self._fault = fault
            self._num_left = fault.occurrence if fault is not None else 0

    def reached(self, step: str) -> None:
        with self._mutex:
            fault = self._fault
            if fault is None or fault.step != step:
                return
            self._num_left -= 1
            if self._num_left:
                return
            self._fault = None
        self._announce(step)
        _happen(fault)


def _happen(fault: Fault) -> None:
    if fault.action is Action.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action is Action.STOP:
        # To this very thread: it takes the signal before its next instruction, whereas one
        # sent to the process may be taken by another thread first, some steps later.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    else:
        time.sleep(fault.delay_s)
