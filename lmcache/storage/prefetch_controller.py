"""Brings what L2 holds of a prompt into L1: asks the adapters, reserves slots, loads, locks.

One loop decides; tiers answer in their threads by way of an inbox. A job ends when all that is
held without a gap is loaded, when its deadline passes, or when it is cancelled. What arrives
after that is kept in L1 for whoever comes next, and locked by nobody.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_job import OnDone, PrefetchJob, PrefetchPhase, PrefetchRequest
from lmcache.storage.prefetch_loads import PrefetchLoads
from lmcache.storage.prefetch_lookups import PrefetchLookups
from lmcache.storage.prefetch_policies import PrefetchPolicy
from lmcache.storage.tier import Tier
from lmcache.storage.tier_table import TierTable

logger = logging.getLogger(__name__)

_QUEUED_MAX = 10_000
# A job that gets no answer for so long counts as in flight no more: others take their turn.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class PrefetchConfig:
    """`held_s`: how long what was loaded ahead of a lookup waits for it."""

    max_in_flight: int = 8
    held_s: float = 30.0


class PrefetchController:
    """`submit`, `release` from any thread; `cycle` from one. `owner_uid` marks slots this server writes."""

    def __init__(
        self,
        policy: PrefetchPolicy,
        config: PrefetchConfig,
        owner_uid: int,
        metrics: StorageMetrics,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._inbox: deque[Callable[[], None]] = deque()
        self._tiers = TierTable()
        self._jobs: dict[Hashable, PrefetchJob] = {}
        self._queued: deque[PrefetchJob] = deque()
        self._active: dict[int, PrefetchJob] = {}
        self._loads = PrefetchLoads(owner_uid, metrics, clock, self._post, self._end_if_loaded)
        self._lookups = PrefetchLookups(
            policy, self._tiers, self._loads, metrics, clock, self._post, self._end_if_loaded
        )

    # From any thread

    def add_tier(self, tier: Tier) -> None:
        self._tiers.add(tier)

    def remove_tier(self, index: int) -> None:
        """Nobody waits for its answers any more."""
        tier = self._tiers.remove(index)
        if tier is not None:
            self._post(lambda: self._answer_for(tier))

    def usable_tiers(self) -> list[Tier]:
        return self._tiers.usable()

    def might_hold(self, keys: Sequence[ObjectKey]) -> bool:
        """False: no adapter in use has all of these, for certain. Never blocks."""
        tiers = self.usable_tiers()
        return all(any(tier.adapter.might_hold(key) for tier in tiers) for key in keys)

    def submit(self, key: Hashable, request: PrefetchRequest, on_done: OnDone | None) -> None:
        """Start a job, or wait for the one under way under this key. `on_done` is told once, always."""
        self._post(lambda: self._start_or_join(key, request, on_done))

    def release(self, key: Hashable) -> None:
        """Nobody waits for this job any more: its locks end, and a waiter is told that it was cancelled."""
        self._post(lambda: self._cancel(key))

    def answer_all(self, timeout_s: float) -> bool:
        """Whoever waits is told now, whatever has arrived. False: that took too long."""
        done = threading.Event()

        def end_all() -> None:
            for job in list(self._jobs.values()):
                if job.on_done is not None:
                    self._end(job, is_whole=True)
            done.set()

        self._post(end_all)
        return done.wait(timeout_s)

    def _post(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._wake()

    # The loop

    def cycle(self) -> dict[str, object]:
        while self._inbox:
            try:
                self._inbox[0]()
            finally:
                self._inbox.popleft()  # only now: until it is done, nothing is at rest
        now_s = self._clock()
        for job in list(self._jobs.values()):
            if job.phase is PrefetchPhase.DONE:
                if now_s - job.ended_s > self._config.held_s:
                    self._let_go(job)
            elif now_s >= job.deadline_s:
                self._end(job, is_whole=True)
            elif now_s - job.progress_s > _PATIENCE_S:
                self._active.pop(id(job), None)
        self._start_queued()
        return {"in_flight": len(self._active), "queued": len(self._queued)}

    def next_run_in_s(self) -> float:
        """When the next job's time is over, as of the last cycle."""
        ends_s = [job.deadline_s for job in self._jobs.values() if job.phase is not PrefetchPhase.DONE]
        return min(ends_s) - self._clock() if ends_s else math.inf

    def _start_or_join(self, key: Hashable, request: PrefetchRequest, on_done: OnDone | None) -> None:
        job = self._jobs.get(key)
        if job is not None and job.request.serves(request):
            if on_done is not None:
                self._join(job, request, on_done)
            return
        if job is not None:
            self._cancel(key)
        if len(self._queued) >= _QUEUED_MAX:
            self._tell(on_done, False)
            return
        job = self._jobs[key] = PrefetchJob(key, request, on_done)
        self._queued.append(job)
        self._start_queued()

    def _join(self, job: PrefetchJob, request: PrefetchRequest, on_done: OnDone) -> None:
        if job.phase is PrefetchPhase.DONE:
            self._tell(on_done, True)
            self._let_go(job)
            return
        self._tell(job.on_done, False)
        job.on_done = on_done
        job.deadline_s = min(job.deadline_s, request.deadline_s)

    def _start_queued(self) -> None:
        while self._queued and len(self._active) < self._config.max_in_flight:
            job = self._queued.popleft()
            if job.phase is PrefetchPhase.QUEUED:
                self._active[id(job)] = job
                self._metrics.prefetch_lookup.add(1)
                self._lookups.ask(job)

    def _answer_for(self, tier: Tier) -> None:
        for job in list(self._jobs.values()):
            self._lookups.answer_for(job, tier)

    # End

    def _end_if_loaded(self, job: PrefetchJob) -> None:
        """Nothing more is asked for or loaded, unless it still is."""
        if job.phase is PrefetchPhase.LOAD and not job.num_loading:
            self._end(job, is_whole=True)

    def _end(self, job: PrefetchJob, is_whole: bool) -> None:
        """Tell the waiter; what it did not lock by itself is let go, or held for the lookup to come."""
        if job.phase is PrefetchPhase.DONE:
            return
        self._lookups.give_up(job)
        job.phase, job.ended_s = PrefetchPhase.DONE, self._clock()
        job.is_detached = bool(job.num_loading)
        self._active.pop(id(job), None)
        on_done, job.on_done = job.on_done, None
        if on_done is not None or not is_whole:
            self._tell(on_done, is_whole)
            self._let_go(job)

    def _cancel(self, key: Hashable) -> None:
        job = self._jobs.get(key)
        if job is None:
            return
        if job.phase is PrefetchPhase.DONE:
            self._let_go(job)
        else:
            self._end(job, is_whole=False)

    def _let_go(self, job: PrefetchJob) -> None:
        """It is there until nothing of its is locked."""
        self._loads.let_go(job)
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    def _tell(self, on_done: OnDone | None, is_whole: bool) -> None:
        if on_done is None:
            return
        try:
            on_done(is_whole)
        except Exception:  # the root of a waiter's answer: log, go on with the others
            logger.exception("an answer to a prefetch failed")

    # Telling

    def job(self, key: Hashable) -> PrefetchJob | None:
        return self._jobs.get(key)

    @property
    def is_at_rest(self) -> bool:
        """Whether there is no job, no load under way, nothing held for a reader, and nothing to be heard. What was
        submitted or released before this call is over then; any thread may ask."""
        if self._inbox:
            return False
        is_idle = not (self._jobs or self._active or self._loads.num_under_way or self._loads.held_bytes)
        return is_idle and not self._inbox  # what is in the middle of being done is still in there

    @property
    def num_jobs(self) -> int:
        """Jobs queued or under way."""
        return sum(job.phase is not PrefetchPhase.DONE for job in list(self._jobs.values()))

    def report(self) -> dict[str, object]:
        jobs = list(self._jobs.values())
        phases = [job.phase for job in jobs]
        return {
            "max_in_flight": self._config.max_in_flight,
            "policy": self.policy.name,
            "submission_queue_size": len(self._inbox),
            "pending_queue_size": phases.count(PrefetchPhase.QUEUED),
            "in_flight_request_count": len(self._active),
            "lookup_phase_count": phases.count(PrefetchPhase.LOOKUP),
            "load_phase_count": phases.count(PrefetchPhase.LOAD),
            "completed_results_count": phases.count(PrefetchPhase.DONE),
        }
