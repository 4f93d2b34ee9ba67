"""Calls of an adapter, whatever it raises: what failed is counted, and tells the circuit breaker.

The jobs of a tier get an answer instead of an error; an operator gets the error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BreakerOpenError, ConfigError, CorruptObjectError, L2Error, LMCacheError
from lmcache.l2.base import L2Adapter, Loaded, Source, StoreStatus
from lmcache.storage.breaker import CircuitBreaker
from lmcache.storage.metrics import StorageMetrics

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BackendCalls:
    """Thread-safe, as the adapter is. Every call blocks for as long as the backend does."""

    def __init__(self, adapter: L2Adapter, breaker: CircuitBreaker, metrics: StorageMetrics) -> None:
        self._adapter = adapter
        self._name = adapter.type_name
        self._breaker = breaker
        self._metrics = metrics

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """None of them, where the backend fails."""
        return self._guarded(lambda: self._lookup(keys), [False] * len(keys))

    def load(self, key: ObjectKey, target: memoryview) -> Loaded | None:
        """None: it could not be had."""
        return self._guarded(lambda: self._load(key, target), None)

    def store(self, key: ObjectKey, source: Source) -> StoreStatus | None:
        """None: the backend failed."""
        return self._guarded(lambda: self._adapter.store(key, source), None)

    def release(self, keys: Sequence[ObjectKey]) -> None:
        """Never raises: leases end by themselves, too."""
        try:
            self._adapter.release(keys)
        except Exception:  # an adapter's bug: log, count, go on
            self._metrics.backend_failures.add(1, self._name)
            logger.exception("L2 adapter %s failed to release leases", self._name)

    def call(self, work: Callable[[L2Adapter], T]) -> T:
        """For an operator. Raises BreakerOpenError, or what the adapter raises."""
        if not self._breaker.allows():
            raise BreakerOpenError(f"L2 adapter {self._name} is left alone after failures: {self._breaker.last_error}")
        try:
            result = work(self._adapter)
        except BackendError as error:
            self._breaker.failed(str(error))
            raise
        except LMCacheError:
            self._breaker.succeeded()
            raise
        except Exception as error:  # an adapter's bug: log, count, tell the operator
            self._note_bug(error)
            raise BackendError(f"{type(error).__name__}: {error}") from error
        self._breaker.succeeded()
        return result

    def _lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        found = self._adapter.lookup(keys)
        if len(found) != len(keys):
            raise BackendError(f"an adapter's bug: {len(found)} answers to a lookup of {len(keys)} keys")
        return found

    def _load(self, key: ObjectKey, target: memoryview) -> Loaded:
        loaded = self._adapter.load(key, target)
        if loaded.num_bytes != len(target):
            raise BackendError(f"an adapter's bug: it loaded {loaded.num_bytes} bytes where {len(target)} were wanted")
        return loaded

    def _guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """`work`, or `otherwise` where the backend fails, the object is bad, or the breaker is open."""
        if not self._breaker.allows():
            return otherwise
        try:
            result = work()
        except BackendError as error:
            self._breaker.failed(str(error))
            self._metrics.backend_failures.add(1, self._name)
            logger.warning("L2 adapter %s: %s", self._name, error)
            return otherwise
        except (L2Error, ConfigError) as error:
            self._breaker.succeeded()
            if isinstance(error, CorruptObjectError):
                self._metrics.corrupt_objects.add(1, self._name)
            return otherwise
        except Exception as error:  # an adapter's bug: log, count, go on
            self._note_bug(error)
            return otherwise
        self._breaker.succeeded()
        return result

    def _note_bug(self, error: Exception) -> None:
        self._breaker.failed(f"{type(error).__name__}: {error}")
        self._metrics.backend_failures.add(1, self._name)
        logger.exception("L2 adapter %s failed", self._name)
