"""The loads of one step, copied by a thread of the rank while the engine computes the layers before.

    start --> layer 0 ready --> ... --> last layer ready --> over
                     |
                     +-- end, or a wait past the deadline --> over, and some layers never become ready

The rank's own thread waits for a layer before it reads its pages, and `end`s the step before they may be given to
anybody else: from then on nobody writes to them. What it then waits for is the copy of one layer of one chunk at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lmcache.embedded.layer_transfers import LayerLoad
from lmcache.kv_copy.affinity import restore_affinity

logger = logging.getLogger(__name__)

_THREAD_NAME = "lmcache-layer-load"


class LayerLoads:
    """One use. A load that fails leaves the others alone."""

    def __init__(
        self,
        loads: Sequence[LayerLoad],
        num_layers: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loads = loads
        self._num_layers = num_layers
        self._begun_s = clock()
        self._deadline_s = self._begun_s + timeout_s
        self._clock = clock
        self.took_s = 0.0  # once it is over
        self._changed = threading.Condition()  # guards what stands below it
        self._num_ready = 0
        self._is_over = False
        self._is_cancelled = False

    def run(self) -> None:
        """In the thread that copies."""
        try:
            for layer in range(self._num_layers):
                for load in self._loads:
                    if self._is_cancelled:
                        return
                    _copy(load, layer)
                self._note(layer + 1)
        finally:
            with self._changed:
                self.took_s = self._clock() - self._begun_s
                self._is_over = True
                self._changed.notify_all()

    def _note(self, num_ready: int) -> None:
        with self._changed:
            self._num_ready = num_ready
            self._changed.notify_all()

    def wait(self, layer: int) -> bool:
        """Whether this layer is there. Once one was not in time, no other is waited for."""
        with self._changed:
            left_s = max(0.0, self._deadline_s - self._clock())
            self._changed.wait_for(lambda: self._num_ready > layer or self._is_over, left_s)
            is_ready = self._num_ready > layer
            self._is_cancelled = self._is_cancelled or not is_ready
        return is_ready

    def end(self, is_wanted: bool = True) -> list[str]:
        """For each load, empty or why its pages must not be trusted. `is_wanted` False: all of them."""
        with self._changed:  # whoever was told that a layer is not there went on without it, even if it came after all
            is_given_up = self._is_cancelled
        is_whole = is_wanted and not is_given_up and self.wait(self._num_layers - 1)
        with self._changed:
            self._is_cancelled = True
            self._changed.wait_for(lambda: self._is_over)
        return [load.end(is_whole) for load in self._loads]


class LayerLoadThread:
    """Copies for one rank. The thread is there from the first load on."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, _THREAD_NAME, restore_affinity)

    def start(self, loads: LayerLoads) -> None:
        try:
            self._executor.submit(loads.run)
        except RuntimeError:  # no thread is to be had: all layers now
            loads.run()

    def close(self) -> None:
        self._executor.shutdown()


def _copy(load: LayerLoad, layer: int) -> None:
    try:
        load.copy(layer)
    except Exception as error:  # the root of a copy: a failed load, never a failed step
        logger.exception("a load failed")
        load.failure = f"{type(error).__name__}: {error}"
