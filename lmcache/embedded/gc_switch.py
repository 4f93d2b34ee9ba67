"""`py_enable_gc`: whether Python's garbage collector runs, of which a process has one.

Several configurations may meet in a process: it rests while at least one of them asks for that.
"""

from __future__ import annotations

import gc
import threading

from lmcache.config.engine import LMCacheEngineConfig

_KEY = "py_enable_gc"
_mutex = threading.Lock()
# Who wants it off, and whether it is us who switched it off.
_wishes: set[GCSwitch] = set()
_is_ours = False


class GCSwitch:
    """Follows the key of one configuration from now on, until `close`. Any thread."""

    def __init__(self, config: LMCacheEngineConfig) -> None:
        self._config = config
        self._is_closed = False
        self._unsubscribe = config.subscribe([_KEY], lambda _: self._follow())
        self._follow()

    def _follow(self) -> None:
        """The key is read inside: of two changes at a time the later one counts."""
        with _mutex:
            if self._config.py_enable_gc or self._is_closed:
                _wishes.discard(self)
            else:
                _wishes.add(self)
            _apply()

    def close(self) -> None:
        """Idempotent. As it was before, unless another configuration wants it off."""
        self._unsubscribe()
        self._is_closed = True
        self._follow()


def _apply() -> None:
    """Under the mutex. What others switched off stays off."""
    global _is_ours
    if _wishes and gc.isenabled():
        gc.disable()
        _is_ours = True
    elif not _wishes and _is_ours:
        gc.enable()
        _is_ours = False
