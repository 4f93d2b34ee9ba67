"""Waiting for what other threads and processes do. Knows nothing of what that is."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

# Of a machine on which everything else goes on at the same time.
PATIENCE_S = 30.0
_LOOK_S = 0.005


def wait_until(is_so: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Ends as soon as it is so, and fails the test where it never is."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(_LOOK_S)


def wait_until_inside(thread: threading.Thread, function: str) -> None:
    """Until the thread has called a function of this name and is not back from it."""

    def is_inside() -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        return any(entry.name == function for entry in traceback.extract_stack(frame)) if frame else False

    wait_until(is_inside)
