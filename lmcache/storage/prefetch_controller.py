"""Brings what L2 holds of a prompt into L1: asks the adapters, reserves slots, loads, locks.

One loop decides; tiers answer in their threads by way of an inbox. A job ends when all that is
held without a gap is loaded, when its deadline passes, or when it is cancelled. What arrives
after that is kept in L1 for whoever comes next, and locked by nobody.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.l1.values import Place
from lmcache.l2.base import Loaded
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_job import LoadKey, OnDone, PrefetchJob, PrefetchPhase, PrefetchRequest, Wanted
from lmcache.storage.prefetch_policies import PrefetchPolicy
from lmcache.storage.tier import Tier

logger = logging.getLogger(__name__)

_QUEUED_MAX = 10_000
# A job that gets no answer for so long counts as in flight no more: others take their turn.
_PATIENCE_S = 5.0
_POOL_SHARE = 2  # all jobs together may fill a half of the pool


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
        self._owner_uid = owner_uid
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._mutex = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._tiers: dict[int, Tier] = {}
        self._jobs: dict[Hashable, PrefetchJob] = {}
        self._queued: deque[PrefetchJob] = deque()
        self._active: dict[int, PrefetchJob] = {}
        # Bytes of slots that jobs load into, or hold for their readers.
        self._held_bytes = 0
        # Objects being loaded, and what other jobs wait for them.
        self._loads: dict[LoadKey, list[Wanted]] = {}

    # From any thread

    def add_tier(self, tier: Tier) -> None:
        with self._mutex:
            self._tiers[tier.index] = tier

    def remove_tier(self, index: int) -> None:
        """Nobody waits for its answers any more."""
        with self._mutex:
            tier = self._tiers.pop(index, None)
        if tier is not None:
            self._post(lambda: self._answer_for(tier))

    def usable_tiers(self) -> list[Tier]:
        with self._mutex:
            return [tier for tier in self._tiers.values() if tier.is_usable]

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

    def _post(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._wake()

    # The loop

    def cycle(self) -> dict[str, object]:
        while self._inbox:
            self._inbox.popleft()()
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
                self._ask(job)

    # Lookup

    def _ask(self, job: PrefetchJob) -> None:
        """Lock what L1 has of the next chunks, ask every adapter in use for the rest."""
        while True:
            first, stop = job.window = job.next_window()
            job.asked = [
                (chunk, rank)
                for chunk in range(first, stop)
                for rank in range(len(job.request.rank_groups))
                if not self._lock_held(job, chunk, rank)
            ]
            if job.asked or stop == first:
                break
        tiers = self.usable_tiers() if job.asked and not job.request.pool.is_closed else []
        job.phase, job.answers, job.asked_of = PrefetchPhase.LOOKUP, {}, {tier.index for tier in tiers}
        job.progress_s = self._clock()
        if not tiers:
            if job.asked:
                job.stop_chunk = min(job.stop_chunk, job.asked[0][0])
            job.phase = PrefetchPhase.LOAD
            self._end_if_loaded(job)
            return
        keys = [job.request.key(chunk, rank) for chunk, rank in job.asked]
        self._metrics.prefetch_lookup_objects.add(len(keys), job.request.namespace.cache_salt)
        for tier in tiers:
            on_done = functools.partial(self._post_answer, job, job.window, tier, keys)
            tier.submit_lookup(keys, on_done, job.request.deadline_s)

    def _lock_held(self, job: PrefetchJob, chunk: int, rank: int) -> bool:
        request = job.request
        held = request.pool.l1.lock_key(
            request.namespace, request.rank_groups[rank], request.digests[chunk], request.retains
        )
        if held is not None:
            job.locked[chunk, rank] = held
        return held is not None

    def _post_answer(
        self, job: PrefetchJob, window: tuple[int, int], tier: Tier, keys: list[ObjectKey], found: list[bool]
    ) -> None:
        self._post(lambda: self._answered(job, window, tier, keys, found))

    def _answered(
        self, job: PrefetchJob, window: tuple[int, int], tier: Tier, keys: list[ObjectKey], found: list[bool]
    ) -> None:
        if job.window != window or job.phase is not PrefetchPhase.LOOKUP:
            tier.release([key for key, is_held in zip(keys, found, strict=True) if is_held])
            return
        job.answers[tier.index] = found
        if not self.policy.is_decided(job.answers, len(job.asked_of)):
            return
        answers, job.answers, job.phase = job.answers, {}, PrefetchPhase.LOAD
        self._load_planned(job, keys, answers, self.policy.plan(answers, len(keys)))

    def _answer_for(self, tier: Tier) -> None:
        """It was removed: what it was asked, and has not answered, it does not hold."""
        for job in list(self._jobs.values()):
            if job.phase is PrefetchPhase.LOOKUP and tier.index in job.asked_of and tier.index not in job.answers:
                keys = [job.request.key(chunk, rank) for chunk, rank in job.asked]
                self._answered(job, job.window, tier, keys, [False] * len(keys))

    def _load_planned(
        self, job: PrefetchJob, keys: list[ObjectKey], answers: dict[int, Sequence[bool]], plan: list[int | None]
    ) -> None:
        """Load the keys of leading chunks that are held by some adapter, every rank of them."""
        missing = next((position for position, index in enumerate(plan) if index is None), None)
        if missing is not None:
            job.stop_chunk = min(job.stop_chunk, job.asked[missing][0])
        num_wanted = sum(chunk < job.stop_chunk for chunk, _ in job.asked)
        self._release_leases(keys, answers, plan[:num_wanted])
        self._metrics.prefetch_hit.add(num_wanted)
        self._metrics.prefetch_load_submitted.add(len(set(plan[:num_wanted])))
        for position in range(num_wanted):
            chunk, rank = job.asked[position]
            self._load(job, chunk, rank, keys[position], plan[position])
        stop = job.window[1]
        if job.stop_chunk >= stop and stop < len(job.request.digests):
            self._ask(job)
        else:
            self._end_if_loaded(job)

    def _release_leases(
        self, keys: list[ObjectKey], answers: dict[int, Sequence[bool]], plan: Sequence[int | None]
    ) -> None:
        """Leases on what another adapter loads, or nobody."""
        for index, found in answers.items():
            tier = self._tiers.get(index)
            unused = [
                key
                for position, (key, is_held) in enumerate(zip(keys, found, strict=True))
                if is_held and (position >= len(plan) or plan[position] != index)
            ]
            if tier is not None and unused:
                tier.release(unused)

    # Load

    def _load(self, job: PrefetchJob, chunk: int, rank: int, key: ObjectKey, tier_index: int | None) -> None:
        tier = self._tiers.get(tier_index) if tier_index is not None else None
        if tier is None:
            job.stop_chunk = min(job.stop_chunk, chunk)
            return
        place, offset = None, 0
        if chunk < job.stop_chunk and not self._join_load(job, chunk, rank):
            place, offset = self._reserve(job, chunk, rank)
        if place is None:
            tier.release([key])
            return
        job.num_loading += 1
        self._loads[job.request.load_key(chunk, rank)] = []
        self._metrics.prefetch_load_submitted_objects.add(1, key.cache_salt)
        target = job.request.pool.view(offset, place.length)
        on_done = functools.partial(self._post_loaded, job, chunk, rank, place, tier)
        tier.submit_load(key, target, on_done)

    def _join_load(self, job: PrefetchJob, chunk: int, rank: int) -> bool:
        """Whether another job loads this object already; then this one waits for it, too."""
        waiting = self._loads.get(job.request.load_key(chunk, rank))
        if waiting is None:
            return False
        job.num_loading += 1
        waiting.append((job, chunk, rank))
        return True

    def _reserve(self, job: PrefetchJob, chunk: int, rank: int) -> tuple[Place | None, int]:
        """A slot to load into; None where the object is in L1 already (it is locked then), or cannot be."""
        request, l1 = job.request, job.request.pool.l1
        rank_group, length, digest = request.rank_groups[rank], request.lengths[rank], request.digests[chunk]
        if self._lock_held(job, chunk, rank):
            return None, 0
        if self._held_bytes + length <= request.pool.pool_bytes // _POOL_SHARE:
            result = l1.reserve(request.namespace, rank_group, self._owner_uid, [digest], length)
            if result.statuses[0] == ReserveStatus.RESERVED:
                self._held_bytes += length
                slot, word, offset, length = split_places(l1.places(result.slots))[0]
                return Place(slot, word, length), offset
            reason = "l1_oom" if result.statuses[0] == ReserveStatus.NO_ROOM else "being_written"
        else:
            reason = "l1_oom"
        self._metrics.prefetch_failure.add(1, reason, request.namespace.model_name)
        if reason == "l1_oom":
            self._metrics.l1_allocation_failure.add(1, "l2_prefetch", request.namespace.model_name)
        job.stop_chunk = min(job.stop_chunk, chunk)
        return None, 0

    def _post_loaded(
        self, job: PrefetchJob, chunk: int, rank: int, place: Place, tier: Tier, loaded: Loaded | None
    ) -> None:
        self._post(lambda: self._loaded(job, chunk, rank, place, tier, loaded))

    def _loaded(self, job: PrefetchJob, chunk: int, rank: int, place: Place, tier: Tier, loaded: Loaded | None) -> None:
        request = job.request
        job.num_loading -= 1
        job.progress_s = self._clock()
        if loaded is None:
            self._held_bytes -= place.length
            request.pool.l1.abort(self._owner_uid, [place])
            job.stop_chunk = min(job.stop_chunk, chunk)
            self._metrics.prefetch_failure.add(1, "not_found", request.namespace.model_name)
        else:
            self._commit(job, chunk, rank, place, tier, loaded)
        # Before this job ends: a temporary object would go with its lock.
        for wanted in self._loads.pop(request.load_key(chunk, rank), ()):
            self._arrived(*wanted)
        if job.phase is PrefetchPhase.LOAD:
            self._end_if_loaded(job)

    def _arrived(self, job: PrefetchJob, chunk: int, rank: int) -> None:
        """Another job's load of what this one waits for has ended, one way or the other."""
        job.num_loading -= 1
        if not job.is_detached and not self._lock_held(job, chunk, rank):
            job.stop_chunk = min(job.stop_chunk, chunk)
        if job.phase is PrefetchPhase.LOAD:
            self._end_if_loaded(job)

    def _commit(self, job: PrefetchJob, chunk: int, rank: int, place: Place, tier: Tier, loaded: Loaded) -> None:
        request = job.request
        committed = request.pool.l1.commit_loaded(
            self._owner_uid, place, lock=not job.is_detached, is_temporary=not request.retains
        )
        if committed is None or job.is_detached:
            self._held_bytes -= place.length
        else:
            job.locked[chunk, rank] = committed
            job.held_bytes += place.length
        if committed is None:
            job.stop_chunk = min(job.stop_chunk, chunk)
            return
        job.num_loaded += 1
        self._metrics.prefetch_load_completed.add(1, request.namespace.cache_salt)
        if loaded.is_lossy:
            self._metrics.lossy_loads.add(1, tier.name)

    # End

    def _end_if_loaded(self, job: PrefetchJob) -> None:
        if not job.num_loading:
            self._end(job, is_whole=True)

    def _end(self, job: PrefetchJob, is_whole: bool) -> None:
        """Tell the waiter; what it did not lock by itself is let go, or held for the lookup to come."""
        if job.phase is PrefetchPhase.DONE:
            return
        if job.answers:  # of some adapters, while others are silent
            self._release_leases([job.request.key(chunk, rank) for chunk, rank in job.asked], job.answers, ())
            job.answers = {}
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
        job.is_detached = True
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        self._held_bytes -= job.held_bytes
        job.held_bytes = 0
        places = job.take_locked()
        if places:
            job.request.pool.l1.unlock(places)

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
