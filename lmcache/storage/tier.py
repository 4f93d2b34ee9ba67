"""One L2 adapter at work: its threads, bounded queues, circuit breaker and counts.

Jobs answer by callback, in a thread of the tier; a callback must be quick. Reads (lookups,
loads) go before stores, and one thread is always left for them. A job that cannot be done in
its time, or at all, is answered too: nobody waits for ever. Housekeeping of the adapter is a job
as well, so that a backend that hangs holds up nobody but itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BreakerOpenError, ConfigError, CorruptObjectError, L2Error, LMCacheError
from lmcache.l2.base import L2Adapter, Loaded, Source, StoreStatus
from lmcache.storage.breaker import BreakerConfig, BreakerState, CircuitBreaker
from lmcache.storage.call_gate import CallGate
from lmcache.storage.metrics import StorageMetrics

logger = logging.getLogger(__name__)

T = TypeVar("T")
_OPEN_RETRY_S = (1.0, 30.0)
# Every thread of a tier stuck for so long: its backend hangs.
_STALL_S = 30.0


class _Kind(StrEnum):
    READ = "read"
    STORE = "store"
    CHORE = "chore"


class TierState(StrEnum):
    OPENING = "opening"
    ACTIVE = "active"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TierConfig:
    """Bounds of the queues: more is answered at once, as not done."""

    queued_reads_max: int = 8192
    queued_stores_max: int = 128
    breaker: BreakerConfig = field(default_factory=BreakerConfig)


@dataclass(frozen=True, slots=True)
class _Job:
    """`run` does it and answers; `skip` only answers."""

    run: Callable[[], None]
    skip: Callable[[], None]
    deadline_s: float | None = None


class Tier:
    """Thread-safe. `index` is its number for life, in order of configuration."""

    def __init__(
        self,
        index: int,
        adapter: L2Adapter,
        metrics: StorageMetrics,
        config: TierConfig = TierConfig(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = index
        self.adapter = adapter
        self.name = adapter.type_name
        self.state = TierState.OPENING
        self.breaker = CircuitBreaker(config.breaker, clock)
        self._metrics = metrics
        self._config = config
        self._clock = clock
        self._work = threading.Condition()
        self._reads: deque[_Job] = deque()
        self._stores: deque[_Job] = deque()
        self._chore: Callable[[], None] | None = None
        # Jobs under way, and calls in the threads of others.
        self._running = dict.fromkeys(_Kind, 0)
        self._num_calls = 0
        self._loading_bytes = 0
        self._busy_since_s: dict[int, float] = {}
        self._is_started = False
        self._is_stopping = False
        self._close_mutex = threading.Lock()
        self._opened = threading.Event()
        self.gate = CallGate(self.name)
        self._num_threads = max(2, adapter.num_threads)
        self._threads = [
            threading.Thread(target=self._run, name=f"lmcache-l2-{self.name}-{index}-{number}", daemon=True)
            for number in range(self._num_threads)
        ]

    # Life

    def start(self) -> None:
        """Open the adapter behind, again and again until it can be reached, then work."""
        self._is_started = True
        threading.Thread(target=self._open, name=f"lmcache-l2-open-{self.index}", daemon=True).start()

    def _open(self) -> None:
        wait_s, wait_s_max = _OPEN_RETRY_S
        while not self._is_stopping:
            try:
                self.adapter.open()
            except BackendError as error:
                logger.warning("L2 adapter %s cannot be opened, trying again in %g s: %s", self.name, wait_s, error)
                self.breaker.last_error = str(error)
                with self._work:
                    self._work.wait_for(lambda: self._is_stopping, wait_s)
                wait_s = min(2 * wait_s, wait_s_max)
                continue
            except (LMCacheError, OSError) as error:
                self._fail(str(error))
                return
            except Exception as error:  # the root of a thread: log, go on without this tier
                logger.exception("L2 adapter %s failed to open", self.name)
                self._fail(f"{type(error).__name__}: {error}")
                return
            break
        with self._work:
            if self.state is TierState.OPENING and not self._is_stopping:
                self.state = TierState.ACTIVE
                for thread in self._threads:
                    thread.start()
        self._opened.set()

    def _fail(self, error: str) -> None:
        logger.error("L2 adapter %s is not used: %s", self.name, error)
        self.breaker.last_error = error
        with self._work:
            if self.state is TierState.OPENING:
                self.state = TierState.FAILED
        self._opened.set()

    def wait_until_open(self, timeout_s: float) -> bool:
        self._opened.wait(timeout_s)
        return self.state is TierState.ACTIVE

    def drain(self) -> bool:
        """Take no new work; what was taken is finished. False: somebody said so before."""
        with self._work:
            is_first = self.state not in (TierState.DRAINING, TierState.CLOSED)
            if is_first:
                self.state = TierState.DRAINING
            return is_first

    def close(self, drain_timeout_s: float) -> None:
        """Finish what is under way, within a time, and close the adapter. Idempotent."""
        with self._close_mutex:
            if self.state is TierState.CLOSED:
                return
            if self._is_started:
                self._come_to_rest(drain_timeout_s)
            else:
                self.adapter.close()
            self.state = TierState.CLOSED

    def _come_to_rest(self, drain_timeout_s: float) -> None:
        self.drain()
        with self._work:
            self._work.wait_for(lambda: not self._has_work, drain_timeout_s)
            self._is_stopping = True
            skipped = [*self._reads, *self._stores]
            self._reads.clear()
            self._stores.clear()
            self._work.notify_all()
        for job in skipped:
            job.skip()
        if self._is_left_alone(max(1.0, drain_timeout_s)):
            self.adapter.close()
        else:
            logger.error("L2 adapter %s does not answer; it is left as it is", self.name)

    @property
    def _has_work(self) -> bool:
        return bool(self._reads or self._stores or any(self._running.values()) or self._num_calls)

    def _is_left_alone(self, timeout_s: float) -> bool:
        """Whether, within that time, nobody is in the adapter any more."""
        deadline_s = time.monotonic() + timeout_s
        is_open = self._opened.wait(timeout_s)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._work:
            return is_open and not self.has_stuck_threads and not self._num_calls

    @property
    def has_stuck_threads(self) -> bool:
        """After `close`: whether some call to the backend has not come back."""
        return any(thread.is_alive() for thread in self._threads)

    # Work

    @property
    def is_usable(self) -> bool:
        """Whether it is worth asking: open, not left alone by the breaker, not hanging."""
        return self.state is TierState.ACTIVE and self.breaker.state is not BreakerState.OPEN and not self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """Whether every thread has been at the same job for too long."""
        if len(self._busy_since_s) < self._num_threads:
            return False
        with self._work:
            begun = list(self._busy_since_s.values())
        return len(begun) == self._num_threads and self._clock() - max(begun) > _STALL_S

    @property
    def is_healthy(self) -> bool:
        is_open = self.state in (TierState.ACTIVE, TierState.DRAINING)
        return is_open and self.breaker.state is BreakerState.CLOSED and not self.is_stalled

    def submit_lookup(
        self, keys: Sequence[ObjectKey], on_done: Callable[[list[bool]], None], deadline_s: float
    ) -> None:
        """Which keys are held, each of those leased; none, if that cannot be found out in time."""
        nothing = [False] * len(keys)

        def run() -> None:
            found = self._guarded(lambda: self._lookup(keys), nothing)
            if self._clock() > deadline_s:
                self.release([key for key, is_held in zip(keys, found, strict=True) if is_held])
                found = nothing
            on_done(found)

        self._submit_read(_Job(run, lambda: on_done(nothing), deadline_s))

    def submit_load(
        self,
        key: ObjectKey,
        target: memoryview,
        on_done: Callable[[Loaded | None], None],
        deadline_s: float | None = None,
    ) -> None:
        """The object's bytes into `target`; None: they could not be had. The lease on it ends here."""
        begun_s = self._clock()

        def run() -> None:
            self._count_loading(len(target))
            loaded = self._guarded(lambda: self._load(key, target), None)
            self._count_loading(-len(target))
            self.release([key])
            if loaded is not None:
                self._metrics.load_done(self.name, loaded.num_bytes, self._clock() - begun_s)
            on_done(loaded)

        def skip() -> None:
            self.release([key])
            on_done(None)

        self._submit_read(_Job(run, skip, deadline_s))

    def _lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        found = self.adapter.lookup(keys)
        if len(found) != len(keys):
            raise BackendError(f"an adapter's bug: {len(found)} answers to a lookup of {len(keys)} keys")
        return found

    def _load(self, key: ObjectKey, target: memoryview) -> Loaded:
        loaded = self.adapter.load(key, target)
        if loaded.num_bytes != len(target):
            raise BackendError(f"an adapter's bug: it loaded {loaded.num_bytes} bytes where {len(target)} were wanted")
        return loaded

    def release(self, keys: Sequence[ObjectKey]) -> None:
        """Give leases back. From any thread; never raises: they end by themselves, too."""
        try:
            self.adapter.release(keys)
        except Exception:  # an adapter's bug: log, count, go on
            self._metrics.backend_failures.add(1, self.name)
            logger.exception("L2 adapter %s failed to release leases", self.name)

    def submit_chore(self, work: Callable[[], None]) -> bool:
        """Housekeeping, in a thread of the tier. False: the one before has not ended, or the tier is not in use."""
        with self._work:
            if self.state is not TierState.ACTIVE or self._chore is not None or self._running[_Kind.CHORE]:
                return False
            self._chore = work
            self._work.notify()
        return True

    def submit_store(self, key: ObjectKey, source: Source, on_done: Callable[[StoreStatus | None], None]) -> bool:
        """None: the backend failed. False, and no answer: the queue is full or the tier is not in use."""
        begun_s = self._clock()

        def run() -> None:
            status = self._guarded(lambda: self.adapter.store(key, source), None)
            if status is StoreStatus.STORED:
                self._metrics.store_done(self.name, len(source.data), self._clock() - begun_s)
            on_done(status)

        with self._work:
            if self.state is not TierState.ACTIVE or len(self._stores) >= self._config.queued_stores_max:
                return False
            self._stores.append(_Job(run, lambda: on_done(None)))
            self._work.notify()
        return True

    @property
    def has_room_for_stores(self) -> bool:
        return len(self._stores) < self._config.queued_stores_max

    def call(self, work: Callable[[L2Adapter], T]) -> T:
        """An operator's call, in the caller's thread. Raises BreakerOpenError, or what the adapter raises."""
        if self.state in (TierState.OPENING, TierState.FAILED, TierState.CLOSED):
            raise BreakerOpenError(f"L2 adapter {self.name} is {self.state}: {self.breaker.last_error or 'not ready'}")
        if self.is_stalled:
            raise BreakerOpenError(f"L2 adapter {self.name} does not answer")
        with self.gate.call():
            self._enter_call()
            try:
                return self._call(work)
            finally:
                with self._work:
                    self._num_calls -= 1
                    self._work.notify_all()

    def _enter_call(self) -> None:
        with self._work:
            if self._is_stopping:
                raise BreakerOpenError(f"L2 adapter {self.name} is being closed")
            self._num_calls += 1

    def _call(self, work: Callable[[L2Adapter], T]) -> T:
        if not self.breaker.allows():
            raise BreakerOpenError(f"L2 adapter {self.name} is left alone after failures: {self.breaker.last_error}")
        try:
            result = work(self.adapter)
        except BackendError as error:
            self.breaker.failed(str(error))
            raise
        except LMCacheError:
            self.breaker.succeeded()
            raise
        except Exception as error:  # an adapter's bug: log, count, tell the operator
            self.breaker.failed(f"{type(error).__name__}: {error}")
            self._metrics.backend_failures.add(1, self.name)
            logger.exception("L2 adapter %s failed", self.name)
            raise BackendError(f"{type(error).__name__}: {error}") from error
        self.breaker.succeeded()
        return result

    def _submit_read(self, job: _Job) -> None:
        with self._work:
            is_refused = self.state is not TierState.ACTIVE or len(self._reads) >= self._config.queued_reads_max
            if not is_refused:
                self._reads.append(job)
                self._work.notify()
        if is_refused:
            job.skip()

    def _guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """`work`, or `otherwise` where the backend fails, the object is bad, or the breaker is open."""
        if not self.breaker.allows():
            return otherwise
        try:
            result = work()
        except BackendError as error:
            self.breaker.failed(str(error))
            self._metrics.backend_failures.add(1, self.name)
            logger.warning("L2 adapter %s: %s", self.name, error)
            return otherwise
        except (L2Error, ConfigError) as error:
            self.breaker.succeeded()
            if isinstance(error, CorruptObjectError):
                self._metrics.corrupt_objects.add(1, self.name)
            return otherwise
        except Exception as error:  # an adapter's bug: log, count, go on
            self.breaker.failed(f"{type(error).__name__}: {error}")
            self._metrics.backend_failures.add(1, self.name)
            logger.exception("L2 adapter %s failed", self.name)
            return otherwise
        self.breaker.succeeded()
        return result

    # Threads

    def _run(self) -> None:
        me = threading.get_ident()
        while True:
            with self._work:
                while (kind := self._next_kind()) is None:
                    if self._is_stopping:
                        return
                    self._work.wait()
                do = self._take(kind)
                self._running[kind] += 1
                self._busy_since_s[me] = self._clock()
            try:
                do()
            except Exception:  # the root of a job: a callback failed; log, go on
                logger.exception("a job of L2 adapter %s failed", self.name)
            with self._work:
                self._running[kind] -= 1
                del self._busy_since_s[me]
                self._work.notify_all()

    def _next_kind(self) -> _Kind | None:
        """What may be done now."""
        if self._is_stopping:
            return None
        if self._reads:
            return _Kind.READ
        if self._running[_Kind.STORE] + self._running[_Kind.CHORE] == self._num_threads - 1:
            return None
        if self._chore is not None:
            return _Kind.CHORE
        return _Kind.STORE if self._stores else None

    def _take(self, kind: _Kind) -> Callable[[], None]:
        if kind is _Kind.CHORE:
            chore, self._chore = self._chore, None
            assert chore is not None
            return chore
        job = self._reads.popleft() if kind is _Kind.READ else self._stores.popleft()
        is_late = job.deadline_s is not None and self._clock() > job.deadline_s
        return job.skip if is_late else job.run

    def _count_loading(self, num_bytes: int) -> None:
        with self._work:
            self._loading_bytes += num_bytes

    # Telling

    def inflight(self) -> tuple[int, int, int]:
        """Stores and reads queued or running, and bytes being loaded."""
        with self._work:
            return (
                len(self._stores) + self._running[_Kind.STORE],
                len(self._reads) + self._running[_Kind.READ],
                self._loading_bytes,
            )

    def report(self) -> dict[str, object]:
        """The adapter's own report, and how it fares as a tier."""
        own = self.adapter.report_status()
        if "connection_disabled" in own:  # a documented field, which an adapter alone cannot know
            own["connection_disabled"] = self.breaker.state is BreakerState.OPEN
        return {
            **own,
            "is_healthy": bool(own.get("is_healthy", True)) and self.is_healthy,
            "configured_type": self.name,
            "state": str(self.state),
            "breaker": str(self.breaker.state),
            "breaker_opened_count": self.breaker.num_opened,
            "is_stalled": self.is_stalled,
            "last_error": self.breaker.last_error,
        }
