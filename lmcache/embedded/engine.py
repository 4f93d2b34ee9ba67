"""The engine of one rank: L1 in a private pool, the tiers below it, and the rank's own pages.

Three threads call it. The rank's own thread stores and retrieves, and owns the pages it names; the thread
of the lookup server looks up and may wait for the tiers; a periodic one ends what nobody asked for.
They meet in L1 and in `LookupLocks`, each behind a mutex of its own; the engine itself has none, and
what it holds never changes between `start` and `close`. Knows no socket and no inference engine.
"""

from __future__ import annotations

import logging
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from lmcache.core.keys import ObjectKey, check_cache_salt
from lmcache.embedded.config import EmbeddedConfig, Rank
from lmcache.embedded.jobs import Prompt, RetrieveJob, StoreJob
from lmcache.embedded.lookup_locks import LookupLocks
from lmcache.embedded.pool import close_private_pool, open_private_pool
from lmcache.embedded.tiers import open_storage
from lmcache.embedded.transfers import PageTransfers
from lmcache.engine.pool import SERVER_UID
from lmcache.kv_copy.base import KVCopier
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.memory.records import ready_word
from lmcache.storage.prefetch_job import PrefetchRequest
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)

# As whom the rank writes to slots; the tiers' loads are the server's.
_RANK_UID = SERVER_UID + 1
# A controller that does not answer by its own deadline is not waited for much longer.
_ANSWER_SLACK_S = 0.5


class EmbeddedEngine:
    """`copier` is over the rank's own pages. `folder` must not exist; it goes with `close`."""

    def __init__(
        self,
        config: EmbeddedConfig,
        rank: Rank,
        copier: KVCopier,
        folder: pathlib.Path,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
    ) -> None:
        """Raises DeclinedError, ConfigError, PoolError, NoRoomError."""
        self.config = config
        self.rank = rank
        self.chunk_bytes = rank.layout.chunk_bytes(config.chunk_size)
        self.metrics = MetricRegistry()
        self.threads = PeriodicThreadRegistry()
        self._clock = clock
        self._layout_text = rank.layout.describe()
        self.storage = open_storage(config, SERVER_UID, secrets.randbits(63) | 1, self.metrics, clock)
        self.pool = open_private_pool(config, folder, clock)
        self.l1 = self.pool.l1
        self._transfers = PageTransfers(rank, self.pool, copier, self.chunk_bytes, _RANK_UID, steps)
        lock_bytes_max = int(self.pool.pool_bytes * config.lock_fraction)
        self.locks = LookupLocks(self.l1, lock_bytes_max, config.lock_ttl_s, clock)
        self._is_closed = False

    def start(self) -> None:
        """Bring the tiers up; waits a while for them and goes on without those that take longer."""
        self.storage.start(self.threads)
        monitor = PeriodicThread(
            "PinMonitor-thread", ThreadLevel.CRITICAL, self.config.lock_check_interval_s, self.expire_cycle
        )
        self.threads.start(monitor)

    def close(self) -> None:
        """Hand over what waits for the tiers, within its time, and remove the pool. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.locks.release_all()
        has_writers = not self.storage.close()
        self.threads.stop_all()
        close_private_pool(self.pool, has_writers)

    def expire_cycle(self) -> dict[str, object]:
        """Let go of what lookups found and nobody loaded, and hide loads from tiers that never ended."""
        return {"lookups_expired": self.locks.expire(), "writes_expired": self.l1.quarantine_expired()}

    def _namespace(self, root: bytes, cache_salt: str) -> NamespaceKey:
        return NamespaceKey(self.rank.model_name, root, check_cache_salt(cache_salt))

    # Lookup

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        """Leading chunks of a prompt that are in L1, held for this lookup until they are loaded or released.

        What the tiers have beyond that is fetched for `wait_s` at most; what arrives later stays for others.
        """
        key, digests = self._namespace(prompt.root, prompt.cache_salt), list(prompt.digests)
        num_found = self.locks.lock(lookup_id, key, self.rank.rank_group, digests)
        if num_found < len(digests) and wait_s > 0 and self._is_promising(key, digests[num_found]):
            return self._fetch(lookup_id, key, digests, num_found, wait_s)
        return num_found

    def _is_promising(self, key: NamespaceKey, digest: bytes) -> bool:
        if not self.storage.has_adapters:
            return False
        kv_rank, group_id = self.rank.rank_group
        wanted = ObjectKey(digest, key.model_name, kv_rank, group_id, key.cache_salt)
        return self.storage.prefetches.might_hold([wanted])

    def _fetch(self, lookup_id: str, key: NamespaceKey, digests: list[bytes], num_found: int, wait_s: float) -> int:
        """What the tiers bring is locked by the controller's thread, while the controller still holds it."""
        answer = _Answer()
        request = PrefetchRequest(
            self.pool, key, [self.rank.rank_group], [self.chunk_bytes], digests, num_found,
            self._clock() + wait_s, self.config.keeps_l1,
        )  # fmt: skip

        def on_done(_: bool) -> None:
            answer.give(lambda: self.locks.lock(lookup_id, key, self.rank.rank_group, digests))

        self.storage.prefetches.submit(answer, request, on_done)
        found = answer.wait(wait_s + _ANSWER_SLACK_S)
        self.storage.prefetches.release(answer)
        return num_found if found is None else found

    def release(self, lookup_ids: Iterable[str]) -> int:
        """These lookups are over, whatever they found; how many of them held something."""
        return self.locks.release(lookup_ids)

    # Store and retrieve, in the thread that owns the pages

    def store(self, job: StoreJob) -> tuple[bytes, ...]:
        """Copy the pages of chunks that L1 does not have; the digests of those that found room.

        When this returns, nobody reads those pages any more.
        """
        if not self.config.keeps_l1 and not self._writes_to_tiers:
            return ()
        stored = self._transfers.store(self._namespace(job.root, job.cache_salt), job)
        self._hand_on([place for _, place in stored], job.cache_salt)
        return tuple(digest for digest, _ in stored)

    @property
    def _writes_to_tiers(self) -> bool:
        return self.rank.writes_to_tiers and self.storage.stores.has_tiers

    def _hand_on(self, places: list[Place], cache_salt: str) -> None:
        if places and self._writes_to_tiers:
            ready = [place._replace(slot_word=ready_word(place.slot_word)) for place in places]
            self.storage.stores.submit(self.pool, ready, self._layout_text, cache_salt, self.rank.model_name)

    def retrieve(self, job: RetrieveJob) -> str:
        """Copy found chunks into the pages: empty, or why these pages must not be trusted. Ends its lookup."""
        key = self._namespace(job.root, job.cache_salt)
        try:
            return self._transfers.retrieve(key, job.parts, self.config.keeps_l1)
        finally:
            self.locks.release((job.lookup_id,))

    # Operators

    def clear(self, force: bool = True) -> int:
        """Remove what L1 holds (without `force`, but what is locked); the tiers keep theirs."""
        return self.l1.clear(force)

    def usage(self) -> Mapping[str, int]:
        """Bytes in use, by backend."""
        used = {"LocalCPUBackend": self.l1.memory_bytes()[0]}
        for backend, (_, usage) in zip(self.config.backends, self.storage.usage_by_tier(), strict=True):
            used[backend.name] = usage.total_bytes_used
        return used


class _Answer:
    """What the controller's thread found, unless nobody waits for it any more. One use."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._is_given_up = False
        self._found: int | None = None

    def give(self, find: Callable[[], int]) -> None:
        try:
            with self._mutex:
                if not self._is_given_up:
                    self._found = find()
        finally:
            self._done.set()

    def wait(self, timeout_s: float) -> int | None:
        self._done.wait(timeout_s)
        with self._mutex:
            self._is_given_up = True
            return self._found
