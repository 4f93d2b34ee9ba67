"""Writes what workers commit to the adapters that the policy names. One loop; the copying is done by the tiers.

No lock is taken in L1: the bytes are read where they lie, and the slot word is compared after
they were read. An object that was evicted meanwhile did not reach that adapter; a fresh one is
the last to be evicted. Queues are bounded: a slow adapter loses its oldest entries, nobody waits.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmcache.l1.values import Place
from lmcache.l2.base import Source, StoreStatus
from lmcache.storage.breaker import BreakerState
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.pool_access import OpenPool
from lmcache.storage.store_policies import StorePolicy
from lmcache.storage.tier import Tier
from lmcache.storage.tier_life import TierState

logger = logging.getLogger(__name__)

_QUEUED_MAX = 65536
_ATTEMPTS_MAX = 3
_RETRY_S = 1.0
_INFLIGHT_SHARE = 8  # of the pool: as much may be on its way to one adapter


@dataclass(slots=True)
class _Object:
    """One object on its way to one or more adapters; `num_left` of them have not answered. `is_passing`: L1 has it
    only until then, whatever they answer."""

    pool: OpenPool
    place: Place
    layout: str
    model_name: str
    num_left: int
    is_passing: bool
    is_everywhere: bool = True


@dataclass(slots=True)
class _Entry:
    object: _Object
    num_attempts: int = 0
    not_before_s: float = 0.0


@dataclass(slots=True)
class _Queue:
    """What waits for one adapter, and the bytes on their way to it."""

    tier: Tier
    entries: deque[_Entry] = field(default_factory=deque)
    retries: deque[_Entry] = field(default_factory=deque)
    inflight_bytes: int = 0
    num_inflight: int = 0


class StoreController:
    """`submit` from any thread; `cycle` from one. `wake` asks for a cycle soon."""

    def __init__(
        self, policy: StorePolicy, metrics: StorageMetrics, clock: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._policy = policy
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._mutex = threading.Lock()
        # Under the mutex, told whenever a store has ended.
        self._ended_one = threading.Condition(self._mutex)
        self._queues: dict[int, _Queue] = {}

    def add_tier(self, tier: Tier) -> None:
        with self._mutex:
            self._queues[tier.index] = _Queue(tier)

    def remove_tier(self, index: int) -> None:
        """Nothing more goes there; what waited for it is dropped."""
        with self._mutex:
            queue = self._queues.pop(index, None)
        if queue is not None:
            self._lose(queue, "removed")

    @property
    def has_tiers(self) -> bool:
        """Whether a new object would go to any."""
        with self._mutex:
            return any(queue.tier.route.stores for queue in self._queues.values())

    def submit(
        self,
        pool: OpenPool,
        places: Sequence[Place],
        layout: str,
        cache_salt: str,
        model_name: str = "",
        is_passing: bool = False,
    ) -> None:
        """Objects just committed by a worker, under their READY slot words. `is_passing`: L1 lets go of them once no
        adapter waits for them any more. Quick."""
        dropped: list[tuple[_Entry, Tier]] = []
        with self._mutex:
            indexes = [index for index, queue in self._queues.items() if queue.tier.route.stores]
            chosen = self._policy.choose(indexes) if places else []
            for place in places if chosen else ():
                waiting = _Object(pool, place, layout, model_name, len(chosen), is_passing)
                for index in chosen:
                    queue = self._queues[index]
                    queue.entries.append(_Entry(waiting))
                    if len(queue.entries) > _QUEUED_MAX:
                        dropped.append((queue.entries.popleft(), queue.tier))
        if not chosen:
            if is_passing and places:
                pool.l1.let_go(places)
            return
        for entry, tier in dropped:
            self._drop([entry], tier, "queue_full")
        self._metrics.store_submitted_objects.add(len(places), cache_salt)
        self._wake()

    def cycle(self) -> dict[str, object]:
        """Hand over as much as each adapter takes."""
        with self._mutex:
            queues = list(self._queues.values())
        num_handed_over = sum(self._pump(queue) for queue in queues)
        return {"handed_over": num_handed_over, "pending": self.num_pending}

    def _pump(self, queue: _Queue) -> int:
        route = queue.tier.route
        if route.is_frozen:
            return 0
        if queue.tier.state is TierState.FAILED:
            self._lose(queue, "failed")
        elif not route.stores:
            self._lose(queue, "bypassed")
        num_handed_over = 0
        while queue.tier.is_usable and queue.tier.has_room_for_stores:
            entry = self._next(queue)
            if entry is None or not self._hand_over(queue, entry):
                break
            num_handed_over += 1
            if queue.tier.breaker.state is not BreakerState.CLOSED:
                break  # one is enough to find out
        return num_handed_over

    def _lose(self, queue: _Queue, reason: str) -> None:
        """Nothing that waits for this adapter will be written there."""
        with self._mutex:
            lost = [*queue.entries, *queue.retries]
            queue.entries.clear()
            queue.retries.clear()
        self._drop(lost, queue.tier, reason)

    def _next(self, queue: _Queue) -> _Entry | None:
        """In flight from now on: it is never in neither of both."""
        with self._mutex:
            if queue.retries and queue.retries[0].not_before_s <= self._clock():
                entry = queue.retries.popleft()
            elif not queue.entries or not self._has_room_for(queue, queue.entries[0]):
                return None
            else:
                entry = queue.entries.popleft()
            queue.num_inflight += 1
            queue.inflight_bytes += entry.object.place.length
            return entry

    @staticmethod
    def _has_room_for(queue: _Queue, entry: _Entry) -> bool:
        cap = entry.object.pool.pool_bytes // _INFLIGHT_SHARE
        return not queue.num_inflight or queue.inflight_bytes + entry.object.place.length <= cap

    def _land(self, queue: _Queue, entry: _Entry) -> None:
        """Under the mutex."""
        queue.num_inflight -= 1
        queue.inflight_bytes -= entry.object.place.length
        self._ended_one.notify_all()

    def _hand_over(self, queue: _Queue, entry: _Entry) -> bool:
        """False: the adapter takes no more for now; the entry waits on."""
        waiting = entry.object
        held = waiting.pool.l1.describe(waiting.place) if not waiting.pool.is_closed else None
        if held is None or held.is_lossy:
            if held is None:
                self._metrics.l1_read_failure.add(1, "l2_store", "not_found", waiting.model_name)
            else:  # no tier may take it for what was computed
                self._metrics.store_dropped.add(1, queue.tier.name, "lossy")
            self._ended(waiting, is_there=False)
            with self._mutex:
                self._land(queue, entry)
            return True
        source = Source(
            waiting.pool.view(held.offset, held.length),
            waiting.layout,
            functools.partial(waiting.pool.l1.holds, waiting.place),
        )
        entry.num_attempts += 1
        on_done = functools.partial(self._on_done, queue, entry, held.key.cache_salt)
        if queue.tier.submit_store(held.key, source, on_done):
            return True
        entry.num_attempts -= 1
        with self._mutex:
            is_removed = queue.tier.index not in self._queues
            if not is_removed:
                queue.entries.appendleft(entry)
            self._land(queue, entry)
        if is_removed:
            self._drop([entry], queue.tier, "removed")
        return False

    def _on_done(self, queue: _Queue, entry: _Entry, cache_salt: str, status: StoreStatus | None) -> None:
        """In a thread of the tier."""
        with self._mutex:
            is_retried = status is None and entry.num_attempts < _ATTEMPTS_MAX and queue.tier.index in self._queues
            if is_retried:
                entry.not_before_s = self._clock() + _RETRY_S * entry.num_attempts
                queue.retries.append(entry)
                self._land(queue, entry)
        if is_retried:
            return
        try:
            if status is StoreStatus.STORED:
                self._metrics.store_completed_objects.add(1, cache_salt)
            elif status is not StoreStatus.EXISTS:
                self._metrics.store_dropped.add(1, queue.tier.name, str(status or "failed"))
            self._ended(entry.object, status in (StoreStatus.STORED, StoreStatus.EXISTS))
        finally:
            with self._mutex:  # last: once nothing is under way, L1 has let go of what is not to stay
                self._land(queue, entry)
        self._wake()

    def _ended(self, ended: _Object, is_there: bool) -> None:
        with self._mutex:
            self._ended_one.notify_all()
            ended.num_left -= 1
            ended.is_everywhere = ended.is_everywhere and is_there
            is_last = not ended.num_left
        if is_last and ended.is_passing:
            ended.pool.l1.let_go([ended.place])
        elif is_last and ended.is_everywhere and not self._policy.keeps_l1:
            ended.pool.l1.remove([ended.place])

    def _drop(self, entries: Sequence[_Entry], tier: Tier, reason: str) -> None:
        for entry in entries:
            self._metrics.store_dropped.add(1, tier.name, reason)
            self._ended(entry.object, is_there=False)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether, within that time, nothing waits or is being written any more."""
        with self._mutex:
            return self._ended_one.wait_for(lambda: not self._has_work, timeout_s)

    @property
    def _has_work(self) -> bool:
        return any(queue.entries or queue.retries or queue.num_inflight for queue in self._queues.values())

    def wait_until_still(self, timeout_s: float) -> bool:
        """Whether, within that time, nothing is being written any more to adapters that take no stores now."""
        with self._mutex:
            return self._ended_one.wait_for(lambda: not self._writes_where_it_may_not, timeout_s)

    @property
    def _writes_where_it_may_not(self) -> bool:
        return any(queue.num_inflight and not queue.tier.route.stores for queue in self._queues.values())

    @property
    def num_pending(self) -> int:
        """Objects that wait for an adapter, counted once per adapter."""
        with self._mutex:
            return sum(len(queue.entries) + len(queue.retries) for queue in self._queues.values())

    @property
    def num_inflight(self) -> int:
        with self._mutex:
            return sum(queue.num_inflight for queue in self._queues.values())
