"""One L2 adapter at work: its life, its jobs, its circuit breaker and counts.

Jobs answer by callback, in a thread of the tier; a callback must be quick. Reads (lookups,
loads) go before stores, and one thread is always left for them. A job that cannot be done in
its time, or at all, is answered too: nobody waits for ever. Housekeeping of the adapter is a job
as well, so that a backend that hangs holds up nobody but itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import BreakerOpenError
from lmcache.l2.base import L2Adapter, Loaded, Source, StoreStatus
from lmcache.storage.backend_calls import BackendCalls
from lmcache.storage.breaker import BreakerConfig, BreakerState, CircuitBreaker
from lmcache.storage.call_gate import CallGate
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier_life import TierLife, TierState
from lmcache.storage.tier_route import TierRoute
from lmcache.storage.tier_workers import Job, TierWorkers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TierConfig:
    """Bounds of the queues: more is answered at once, as not done."""

    queued_reads_max: int = 8192
    queued_stores_max: int = 128
    breaker: BreakerConfig = field(default_factory=BreakerConfig)


OnTransfer = Callable[[int, float], None]


def _unheard(num_bytes: int, seconds: float) -> None:
    """Nobody is told."""


class Tier:
    """Thread-safe. `index` is its number for life, in order of configuration. `route` may be replaced at any time:
    jobs that wait already go by it, too."""

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
        self.route = TierRoute()
        # Told of each object that came or went: its bytes, and the seconds since it was asked for.
        self.on_loaded: OnTransfer = _unheard
        self.on_stored: OnTransfer = _unheard
        self.breaker = CircuitBreaker(config.breaker, clock)
        self.gate = CallGate(self.name)
        self._calls = BackendCalls(adapter, self.breaker, metrics)
        self._workers = TierWorkers(
            f"lmcache-l2-{self.name}-{index}", adapter.num_threads, config.queued_reads_max,
            config.queued_stores_max, clock,
        )  # fmt: skip
        self._metrics = metrics
        self._clock = clock
        self._life = TierLife(self.name, adapter, self._workers, self.breaker)
        self._loading_mutex = threading.Lock()
        self._loading_bytes = 0

    # Life

    @property
    def state(self) -> TierState:
        return self._life.state

    def start(self) -> None:
        """Open the adapter behind, again and again until it can be reached, then work."""
        self._life.start(f"lmcache-l2-open-{self.index}")

    def wait_until_open(self, timeout_s: float) -> bool:
        return self._life.wait_until_open(timeout_s)

    def wait_until_tried(self, timeout_s: float) -> None:
        """Until it is open, or has been found to be away."""
        self._life.wait_until_tried(timeout_s)

    def drain(self) -> bool:
        """Take no new work; what was taken is finished. False: somebody said so before."""
        return self._life.drain()

    def close(self, drain_timeout_s: float) -> None:
        """Finish what is under way, within a time, and close the adapter. Idempotent."""
        self._life.close(drain_timeout_s)

    @property
    def has_stuck_threads(self) -> bool:
        """After `close`: whether some call to the backend has not come back."""
        return self._workers.has_stuck_threads

    # Work

    @property
    def is_usable(self) -> bool:
        """Whether it is worth asking: open, not left alone by the breaker, not hanging."""
        return self.state is TierState.ACTIVE and self.breaker.state is not BreakerState.OPEN and not self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """Whether every thread has been at the same job for too long."""
        return self._workers.is_stalled

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
            found = self._calls.lookup(keys) if self.route.reads else nothing
            if self._clock() > deadline_s:
                self.release([key for key, is_held in zip(keys, found, strict=True) if is_held])
                found = nothing
            on_done(found)

        self._submit_read(Job(run, lambda: on_done(nothing), deadline_s))

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
            if not self.route.reads:
                skip()
                return
            self._count_loading(len(target))
            loaded = self._calls.load(key, target)
            self._count_loading(-len(target))
            self.release([key])
            if loaded is not None:
                self._metrics.load_done(self.name, loaded.num_bytes, self._clock() - begun_s)
                self.on_loaded(loaded.num_bytes, self._clock() - begun_s)
            on_done(loaded)

        def skip() -> None:
            self.release([key])
            on_done(None)

        self._submit_read(Job(run, skip, deadline_s))

    def _submit_read(self, job: Job) -> None:
        if not self._workers.add_read(job):
            job.skip()

    def _count_loading(self, num_bytes: int) -> None:
        with self._loading_mutex:
            self._loading_bytes += num_bytes

    def release(self, keys: Sequence[ObjectKey]) -> None:
        """Give leases back. From any thread; never raises: they end by themselves, too."""
        self._calls.release(keys)

    def submit_chore(self, name: str, work: Callable[[], None]) -> bool:
        """Housekeeping, in a thread of the tier. False: the one before of that name has not ended, or the tier is
        not in use."""
        return self._workers.add_chore(name, work)

    def submit_store(self, key: ObjectKey, source: Source, on_done: Callable[[StoreStatus | None], None]) -> bool:
        """None: the backend failed. False, and no answer: the queue is full or the tier is not in use."""
        begun_s = self._clock()

        def end(status: StoreStatus | None) -> None:
            self._metrics.store_completed.add(1, self.name)
            on_done(status)

        def run() -> None:
            status = self._calls.store(key, source) if self.route.stores else None
            if status is StoreStatus.STORED:
                self._metrics.stored(self.name, len(source.data), self._clock() - begun_s)
                self.on_stored(len(source.data), self._clock() - begun_s)
            end(status)

        if not self._workers.add_store(Job(run, lambda: end(None))):
            return False
        self._metrics.store_submitted.add(1)
        return True

    @property
    def has_room_for_stores(self) -> bool:
        return self._workers.has_room_for_stores

    def call(self, work: Callable[[L2Adapter], T]) -> T:
        """An operator's call, in the caller's thread. Raises BreakerOpenError, or what the adapter raises."""
        if self.state in (TierState.OPENING, TierState.FAILED, TierState.CLOSED):
            raise BreakerOpenError(f"L2 adapter {self.name} is {self.state}: {self.breaker.last_error or 'not ready'}")
        if self.is_stalled:
            raise BreakerOpenError(f"L2 adapter {self.name} does not answer")
        with self.gate.call():
            if not self._workers.enter():
                raise BreakerOpenError(f"L2 adapter {self.name} is being closed")
            try:
                return self._calls.call(work)
            finally:
                self._workers.leave()

    # Telling

    def inflight(self) -> tuple[int, int, int]:
        """Stores and reads queued or running, and bytes being loaded."""
        return self._workers.num_stores, self._workers.num_reads, self._loading_bytes

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
