"""The lookup phase of prefetches: adapters are asked for a window of chunks, and what they hold is planned.

Windows grow while everything is found; loads of one begin while the next is being asked for. Only
the controller's thread comes here; tiers answer by way of its inbox.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_job import PrefetchJob, PrefetchPhase
from lmcache.storage.prefetch_loads import PrefetchLoads
from lmcache.storage.prefetch_policies import PrefetchPolicy
from lmcache.storage.tier import Tier
from lmcache.storage.tier_table import TierTable


class PrefetchLookups:
    """`post` runs a callable in the controller's thread; `on_ended` is told of a job that asks for nothing more."""

    def __init__(
        self,
        policy: PrefetchPolicy,
        tiers: TierTable,
        loads: PrefetchLoads,
        metrics: StorageMetrics,
        clock: Callable[[], float],
        post: Callable[[Callable[[], None]], None],
        on_ended: Callable[[PrefetchJob], None],
    ) -> None:
        self._policy = policy
        self._tiers = tiers
        self._loads = loads
        self._metrics = metrics
        self._clock = clock
        self._post = post
        self._on_ended = on_ended

    def ask(self, job: PrefetchJob) -> None:
        """Lock what L1 has of the next chunks, ask every adapter in use for the rest."""
        self._next_window(job)
        tiers = self._tiers.usable() if job.asked and not job.request.pool.is_closed else []
        job.phase, job.answers, job.asked_of = PrefetchPhase.LOOKUP, {}, {tier.index for tier in tiers}
        job.progress_s = self._clock()
        if not tiers:
            if job.asked:
                job.stop_before(job.asked[0][0])
            job.phase = PrefetchPhase.LOAD
            self._on_ended(job)
            return
        keys = job.asked_keys()
        self._metrics.prefetch_lookup_objects.add(len(keys), job.request.namespace.cache_salt)
        for tier in tiers:
            on_done = functools.partial(self._post_answer, job, job.window, tier, keys)
            tier.submit_lookup(keys, on_done, job.request.deadline_s)

    @staticmethod
    def _next_window(job: PrefetchJob) -> None:
        """The next one of which L1 lacks something, or an empty one at the end. Where L1 does not count, the next."""
        while True:
            first, stop = job.window = job.next_window()
            job.asked = [
                (chunk, rank)
                for chunk in range(first, stop)
                for rank in range(len(job.request.rank_groups))
                if not (job.request.counts_l1 and job.lock_held(chunk, rank))
            ]
            if job.asked or stop == first:
                return

    def answer_for(self, job: PrefetchJob, tier: Tier) -> None:
        """A tier was removed: what it was asked, and has not answered, it does not hold."""
        if job.phase is PrefetchPhase.LOOKUP and tier.index in job.asked_of and tier.index not in job.answers:
            keys = job.asked_keys()
            self._answered(job, job.window, tier, keys, [False] * len(keys))

    def give_up(self, job: PrefetchJob) -> None:
        """Some adapters have answered, others are silent, and nobody waits for them any more."""
        if job.answers:
            self._release_leases(job.asked_keys(), job.answers, ())
            job.answers = {}

    # What a tier answered

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
        if not self._policy.is_decided(job.answers, len(job.asked_of)):
            return
        answers, job.answers, job.phase = job.answers, {}, PrefetchPhase.LOAD
        self._load_planned(job, keys, answers, self._policy.plan(answers, len(keys), self._tiers.position))

    def _load_planned(
        self, job: PrefetchJob, keys: list[ObjectKey], answers: dict[int, Sequence[bool]], plan: list[int | None]
    ) -> None:
        """Load the keys of leading chunks that are held by some adapter, every rank of them."""
        missing = next((position for position, index in enumerate(plan) if index is None), None)
        if missing is not None:
            job.stop_before(job.asked[missing][0])
        num_wanted = sum(chunk < job.stop_chunk for chunk, _ in job.asked)
        self._release_leases(keys, answers, plan[:num_wanted])
        self._metrics.prefetch_hit.add(num_wanted)
        self._metrics.prefetch_load_submitted.add(len(set(plan[:num_wanted])))
        for (chunk, rank), key, index in zip(job.asked[:num_wanted], keys, plan, strict=False):
            self._loads.begin(job, chunk, rank, key, self._tiers.get(index) if index is not None else None)
        stop = job.window[1]
        if job.stop_chunk >= stop and stop < len(job.request.digests):
            self.ask(job)
        else:
            self._on_ended(job)

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
