"""Waiting for what engines do by and by."""

from __future__ import annotations

import time
from collections.abc import Callable

SETTLE_S = 30.0
_LOOK_S = 0.02


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not in {SETTLE_S:g} s: {what}"
        time.sleep(_LOOK_S)
