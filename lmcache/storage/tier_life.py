"""The life of a tier: opening its adapter, again and again until it can be reached, draining, closing.

Knows no job: the threads that do them are started once the adapter is open.
"""

from __future__ import annotations

import logging
import threading
import time
from enum import StrEnum

from lmcache.errors import BackendError, LMCacheError
from lmcache.l2.base import L2Adapter
from lmcache.storage.breaker import CircuitBreaker
from lmcache.storage.tier_workers import TierWorkers

logger = logging.getLogger(__name__)

_OPEN_RETRY_S = (1.0, 30.0)


class TierState(StrEnum):
    OPENING = "opening"
    ACTIVE = "active"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


class TierLife:
    """Thread-safe. What went wrong is told to the breaker as its last error."""

    def __init__(self, name: str, adapter: L2Adapter, workers: TierWorkers, breaker: CircuitBreaker) -> None:
        self.state = TierState.OPENING
        self._name = name
        self._adapter = adapter
        self._workers = workers
        self._breaker = breaker
        # Guards `state`, and whether the adapter was given up before it was open.
        self._mutex = threading.Lock()
        self._is_given_up = False
        self._is_started = False
        self._close_mutex = threading.Lock()
        self._opened = threading.Event()
        # The first attempt to open it has come to something.
        self._tried = threading.Event()

    def start(self, thread_name: str) -> None:
        """Open the adapter in a thread of that name, then start the workers."""
        self._is_started = True
        threading.Thread(target=self._run, name=thread_name, daemon=True).start()

    def wait_until_open(self, timeout_s: float) -> bool:
        self._opened.wait(timeout_s)
        return self.state is TierState.ACTIVE

    def wait_until_tried(self, timeout_s: float) -> None:
        """Until it is open, or has been found to be away; it is tried again in that case, for nobody to wait."""
        self._tried.wait(timeout_s)

    def _run(self) -> None:
        is_open = self._open()
        with self._mutex:
            if self.state is TierState.OPENING and not self._workers.is_stopping:
                self.state = TierState.ACTIVE if is_open else TierState.FAILED
                if is_open:
                    self._workers.start()
            self._opened.set()
            self._tried.set()
            is_given_up = self._is_given_up
        if is_given_up:  # whoever closes waits for it no more
            self._close_adapter()

    def _open(self) -> bool:
        """Whether it is open; else it never will be, or nobody wants it any more."""
        wait_s, wait_s_max = _OPEN_RETRY_S
        while not self._workers.is_stopping:
            try:
                self._adapter.open()
            except BackendError as error:
                logger.warning("L2 adapter %s cannot be opened, trying again in %g s: %s", self._name, wait_s, error)
                self._breaker.last_error = str(error)
                self._tried.set()
                self._workers.wait_until_stopping(wait_s)
                wait_s = min(2 * wait_s, wait_s_max)
                continue
            except (LMCacheError, OSError) as error:
                self._will_not(str(error))
            except Exception as error:  # the root of a thread: log, go on without this tier
                logger.exception("L2 adapter %s failed to open", self._name)
                self._will_not(f"{type(error).__name__}: {error}")
            else:
                return True
            return False
        return False

    def _will_not(self, error: str) -> None:
        logger.error("L2 adapter %s is not used: %s", self._name, error)
        self._breaker.last_error = error

    def drain(self) -> bool:
        """Take no new work; what was taken is finished. False: somebody said so before."""
        with self._mutex:
            is_first = self.state not in (TierState.DRAINING, TierState.CLOSED)
            if is_first:
                self.state = TierState.DRAINING
                self._workers.refuse()
            return is_first

    def close(self, drain_timeout_s: float) -> None:
        """Finish what is under way, within a time, and close the adapter; one that is still being opened then is
        closed as soon as it is. Idempotent."""
        with self._close_mutex:
            if self.state is TierState.CLOSED:
                return
            if self._is_started:
                self._come_to_rest(drain_timeout_s)
            else:
                self._close_adapter()
            self.state = TierState.CLOSED

    def _close_adapter(self) -> None:
        """A backend that cannot be left in order is left all the same."""
        try:
            self._adapter.close()
        except (LMCacheError, OSError) as error:
            logger.error("L2 adapter %s could not be closed in order: %s", self._name, error)

    def _come_to_rest(self, drain_timeout_s: float) -> None:
        self.drain()
        self._workers.wait_until_idle(drain_timeout_s)
        self._workers.stop()
        deadline_s = time.monotonic() + max(1.0, drain_timeout_s)
        self._opened.wait(deadline_s - time.monotonic())
        is_at_rest = self._workers.join(max(0.0, deadline_s - time.monotonic()))
        with self._mutex:
            is_open = self._opened.is_set()
            self._is_given_up = not is_open
        if is_at_rest and is_open:
            self._close_adapter()
        else:
            logger.error("L2 adapter %s does not answer; it is left as it is", self._name)
