"""The load phase of prefetches: slots are reserved, filled by tiers, committed and locked.

An object that several jobs want is loaded once; the others wait for the one that loads it. Only
the controller's thread comes here; tiers answer by way of its inbox.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from lmcache.core.keys import ObjectKey
from lmcache.l1.values import Place
from lmcache.l2.base import Loaded
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_job import LoadKey, PrefetchJob
from lmcache.storage.tier import Tier
from lmcache.storage.tier_workers import STALL_S

logger = logging.getLogger(__name__)

_POOL_SHARE = 2  # all jobs together may fill a half of the pool


@dataclass(slots=True, eq=False)
class _Load:
    """One object on its way into `place` for a job, and the jobs that wait for it with what they call it. `late`: it
    arrived after its job ended and is locked for those that wait, since it is not to stay."""

    job: PrefetchJob
    chunk: int
    rank: int
    place: Place
    tier: Tier
    begun_s: float
    waiting: list[tuple[PrefetchJob, int, int]] = field(default_factory=list)
    late: Place | None = None

    @property
    def key(self) -> LoadKey:
        return self.job.request.load_key(self.chunk, self.rank)


class PrefetchLoads:
    """`post` runs a callable in the controller's thread; `on_ended` is told of a job after each of its loads."""

    def __init__(
        self,
        owner_uid: int,
        metrics: StorageMetrics,
        clock: Callable[[], float],
        post: Callable[[Callable[[], None]], None],
        on_ended: Callable[[PrefetchJob], None],
    ) -> None:
        self._owner_uid = owner_uid
        self._metrics = metrics
        self._clock = clock
        self._post = post
        self._on_ended = on_ended
        self._loads: dict[LoadKey, _Load] = {}
        # Bytes of slots that jobs load into, or hold for their readers.
        self.held_bytes = 0

    @property
    def num_under_way(self) -> int:
        return len(self._loads)

    def begin(self, job: PrefetchJob, chunk: int, rank: int, key: ObjectKey, tier: Tier | None) -> None:
        """Bring one object that a tier holds, and has leased, for a job."""
        if tier is None:
            job.stop_before(chunk)
            return
        place, offset = None, 0
        if chunk < job.stop_chunk and not self._join(job, chunk, rank):
            place, offset = self._reserve(job, chunk, rank)
        if place is None:
            tier.release([key])
            return
        load = _Load(job, chunk, rank, place, tier, self._clock())
        job.num_loading += 1
        self._loads[load.key] = load
        self._metrics.prefetch_load_submitted_objects.add(1, key.cache_salt)
        target = job.request.pool.view(offset, place.length)
        tier.submit_load(key, target, functools.partial(self._post_loaded, load))

    def _join(self, job: PrefetchJob, chunk: int, rank: int) -> bool:
        """Whether another job loads this object already, and does not hang; then this one waits for it, too."""
        load = self._loads.get(job.request.load_key(chunk, rank))
        if load is None or self._clock() - load.begun_s > STALL_S:
            return False
        job.num_loading += 1
        load.waiting.append((job, chunk, rank))
        return True

    def _reserve(self, job: PrefetchJob, chunk: int, rank: int) -> tuple[Place | None, int]:
        """A slot to load into; None where the object is in L1 already (it is locked then), or cannot be."""
        request, l1 = job.request, job.request.pool.l1
        if job.lock_held(chunk, rank):
            return None, 0
        length = request.length(chunk, rank)
        if self.held_bytes + length > request.pool.pool_bytes // _POOL_SHARE:
            self._note_no_room(job, chunk)
            return None, 0
        result = l1.reserve(
            request.namespace, request.rank_groups[rank], self._owner_uid, [request.digests[chunk]], length
        )
        if result.statuses[0] == ReserveStatus.RESERVED:
            self.held_bytes += length
            slot, word, offset, length = split_places(l1.places(result.slots))[0]
            return Place(slot, word, length), offset
        if result.statuses[0] == ReserveStatus.NO_ROOM:
            self._note_no_room(job, chunk)
        else:  # somebody writes it
            self._note_not_found(job, chunk)
        return None, 0

    def _note_no_room(self, job: PrefetchJob, chunk: int) -> None:
        model_name = job.request.namespace.model_name
        self._metrics.prefetch_failure.add(1, "l1_oom", model_name)
        self._metrics.l1_allocation_failure.add(1, "l2_prefetch", model_name)
        job.stop_before(chunk)

    def _note_not_found(self, job: PrefetchJob, chunk: int) -> None:
        self._metrics.prefetch_failure.add(1, "not_found", job.request.namespace.model_name)
        job.stop_before(chunk)

    # What a tier answered

    def _post_loaded(self, load: _Load, loaded: Loaded | None) -> None:
        self._post(lambda: self._loaded(load, loaded))

    def _loaded(self, load: _Load, loaded: Loaded | None) -> None:
        job = load.job
        if self._loads.get(load.key) is load:  # one that hung may have been begun anew
            del self._loads[load.key]
        job.num_loading -= 1
        job.progress_s = self._clock()
        if loaded is None:
            self._give_back(load)
            self._note_not_found(job, load.chunk)
        else:
            self._commit(load, loaded)
        # Before this job ends: a temporary object would go with its lock.
        for wanted in load.waiting:
            self._arrived(*wanted)
        if load.late is not None:
            job.request.pool.l1.unlock([load.late])
        self._on_ended(job)

    def _arrived(self, job: PrefetchJob, chunk: int, rank: int) -> None:
        """Another job's load of what this one waits for has ended, one way or the other."""
        job.num_loading -= 1
        if not job.is_detached and not job.lock_held(chunk, rank):
            job.stop_before(chunk)
        self._on_ended(job)

    def _commit(self, load: _Load, loaded: Loaded) -> None:
        job, request = load.job, load.job.request
        stays = job.is_detached and request.keeps_late
        try:
            committed = request.pool.l1.commit_loaded(
                self._owner_uid, load.place, lock=not stays, is_temporary=not request.retains, is_lossy=loaded.is_lossy
            )
        except Exception:  # the root of a tier's answer: log, give its slot back, go on with those that wait
            logger.exception("what was loaded could not be committed")
            self._give_back(load)
            job.stop_before(load.chunk)
            return
        if committed is None or job.is_detached:
            self.held_bytes -= load.place.length
            load.late = None if stays else committed
        else:
            job.locked[load.chunk, load.rank] = committed
            job.held_bytes += load.place.length
        if committed is None:
            job.stop_before(load.chunk)
            return
        job.num_loaded += 1
        self._metrics.prefetch_load_completed.add(1, request.namespace.cache_salt)
        if loaded.is_lossy:
            self._metrics.lossy_loads.add(1, load.tier.name)

    def _give_back(self, load: _Load) -> None:
        self.held_bytes -= load.place.length
        load.job.request.pool.l1.abort(self._owner_uid, [load.place])

    # The end of a job

    def let_go(self, job: PrefetchJob) -> None:
        """Unlock what a job held for its reader; what still arrives is locked by nobody."""
        job.is_detached = True
        self.held_bytes -= job.held_bytes
        job.held_bytes = 0
        places = job.take_locked()
        if places:
            job.request.pool.l1.unlock(places)
