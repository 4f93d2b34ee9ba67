"""The engine of one rank: L1 in a private pool, the tiers below it, and the rank's own pages.

The rank's own thread stores and retrieves, and owns the pages it names; threads of the lookup server look up;
a periodic one ends what nobody asked for; operators may come in any thread. They meet in L1, in `LookupLocks`
and in `BackendSet`, each behind a mutex of its own. What takes part is one value there, replaced whole: a
store or a load reads it when it begins, and a store once more after its commit, so that no switch is missed.
Knows no socket and no inference engine.
"""

from __future__ import annotations

import logging
import math
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from lmcache.core.keys import check_cache_salt
from lmcache.embedded.backends import BackendSet
from lmcache.embedded.config import EmbeddedConfig, Rank
from lmcache.embedded.engine_operations import EngineOperations
from lmcache.embedded.fetching import Fetcher, Wanted
from lmcache.embedded.fs_chunks import ChunkAdmission
from lmcache.embedded.jobs import Prompt, RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.layer_transfers import LayerLoad, LayerStore, Stored
from lmcache.embedded.lookup_locks import LookupLocks
from lmcache.embedded.lookups import PromptLookups
from lmcache.embedded.metric_tiers import watch_tier
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.embedded.mock import MockTokens, scratch_copier
from lmcache.embedded.pool import close_private_pool, open_private_pool
from lmcache.embedded.routing import L1_BACKEND
from lmcache.embedded.tiers import OPEN_PATIENCE_S, open_storage
from lmcache.embedded.transfers import PageTransfers
from lmcache.engine.pool import SERVER_UID
from lmcache.kv_copy.base import KVCopier
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.memory.records import ready_word
from lmcache.protocol.blobs import split_places
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)

# As whom the rank and operators write to slots; the tiers' loads are the server's.
_RANK_UID, _MOCK_UID, _FILES_UID = SERVER_UID + 1, SERVER_UID + 2, SERVER_UID + 3
# Digests are chained from a root, so L1 need not keep roots apart, as the tiers do not: another root's digest is
# another digest. What came from files, of which nobody says the root, is found all the same.
_ANY_ROOT = bytes(32)
# Of the pool, one load fetches at once: prefetches share a half of it, and lookups hold a half at most.
_FETCH_SHARE = 4


class EmbeddedEngine(EngineOperations):
    """`copier` is over the rank's own pages. `folder` must not exist; it goes with `close`. `loads_mock_into_pages`:
    nobody computes on these pages, so `retrieve_mock` may fill them."""

    def __init__(
        self,
        config: EmbeddedConfig,
        rank: Rank,
        copier: KVCopier,
        folder: pathlib.Path,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
        loads_mock_into_pages: bool = False,
        meter: EmbeddedMetrics | None = None,
        threads: PeriodicThreadRegistry | None = None,
    ) -> None:
        """Raises DeclinedError, ConfigError, PoolError, NoRoomError."""
        self.rank = rank
        self._clock = clock
        self._step_ends_s = math.inf
        self.chunk_bytes = rank.layout.chunk_bytes(config.chunk_size)
        self.metrics = MetricRegistry()
        self._meter = meter or EmbeddedMetrics.unshown()
        self.threads = threads or PeriodicThreadRegistry()
        self._layout_text = rank.layout.describe()
        self.storage = open_storage(config, SERVER_UID, secrets.randbits(63) | 1, self.metrics, clock)
        self._backends = BackendSet(config, self.storage, on_open=partial(watch_tier, self._meter))
        self.pool = open_private_pool(config, folder, clock)
        self.l1 = self.pool.l1
        self.l1.keep_loaded(config.keeps_l1)
        self.l1.on_made_room = self._meter.made_room
        self._transfers = PageTransfers(rank, self.pool, copier, self.chunk_bytes, _RANK_UID, steps, self._meter)
        lock_bytes_max = int(self.pool.pool_bytes * config.lock_fraction)
        self.locks = LookupLocks(self.l1, lock_bytes_max, config.lock_ttl_s, clock)
        self._fetcher = Fetcher(self.pool, rank, self.chunk_bytes, self.storage, clock)
        self._lookups = PromptLookups(self.locks, self._fetcher, self._backends, rank.rank_group, self._key)
        admission = ChunkAdmission(
            self.pool, rank, self.chunk_bytes, _FILES_UID, self._key, lambda: self._backends.routing.keeps_l1
        )
        monitor = PeriodicThread(
            "PinMonitor-thread", ThreadLevel.CRITICAL, config.lock_check_interval_s, self.expire_cycle
        )
        mock = self._make_mock(config, copier, loads_mock_into_pages)
        super().__init__(config, rank, self._backends, self.storage, self.l1, self.locks, monitor, mock, admission)
        self._is_closed = False

    def start(self) -> None:
        """Bring the tiers up; waits a while for them and goes on without those that take longer."""
        self.storage.start(self.threads, OPEN_PATIENCE_S)
        self.threads.start(self._monitor)

    def close(self) -> None:
        """Hand over what waits for the tiers, within its time, and remove the pool. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._fetcher.close()
        self.locks.release_all()
        has_writers = not self.storage.close()
        self.threads.stop_all()
        close_private_pool(self.pool, has_writers)

    def expire_cycle(self) -> dict[str, object]:
        """Let go of what lookups found and nobody loaded, and hide loads from tiers that never ended."""
        num_expired = self.locks.expire()
        self._meter.unpinned(num_expired)
        return {"lookups_expired": num_expired, "writes_expired": self.l1.quarantine_expired()}

    def _key(self, cache_salt: str) -> NamespaceKey:
        return NamespaceKey(self.rank.model_name, _ANY_ROOT, check_cache_salt(cache_salt))

    # Lookup

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        """Leading chunks of a prompt that are in L1, held for this lookup until they are loaded or released.

        What the tiers have beyond that is fetched for `wait_s` at most; what arrives later stays for others.
        """
        return self._lookups.lookup(lookup_id, prompt, wait_s)

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        """The same without waiting: `on_found` is told once, from any thread, perhaps before this returns."""
        self._lookups.lookup_later(lookup_id, prompt, wait_s, on_found)

    def release(self, lookup_ids: Iterable[str]) -> int:
        """These lookups are over, whatever they found; how many of them held something."""
        return self._lookups.release(lookup_ids)

    # Store and retrieve, in the thread that owns the pages

    def store(self, job: StoreJob) -> tuple[bytes, ...]:
        """Copy the pages of chunks that L1 does not have; the digests of those that found room.

        When this returns, nobody reads those pages any more.
        """
        return self._store(job, self._transfers)

    def _store(self, job: StoreJob, transfers: PageTransfers) -> tuple[bytes, ...]:
        if not self._takes_stores:
            return ()
        return self._hand_on(job, transfers.store(self._key(job.cache_salt), job))

    def begin_store(self, job: StoreJob) -> LayerStore | None:
        """As `store`, layer by layer: to be ended by `end_store`, or by its own `abort`. None: nothing is stored."""
        return self._transfers.begin_store(self._key(job.cache_salt), job) if self._takes_stores else None

    def end_store(self, job: StoreJob, store: LayerStore) -> tuple[bytes, ...]:
        """All pages are final: as `store`."""
        return self._hand_on(job, store.commit())

    @property
    def _takes_stores(self) -> bool:
        return self._backends.routing.stores_l1 or self._writes_to_tiers

    @property
    def _writes_to_tiers(self) -> bool:
        return self.rank.writes_to_tiers and self.storage.stores.has_tiers

    def _hand_on(self, job: StoreJob, stored: Sequence[Stored]) -> tuple[bytes, ...]:
        """To the tiers what was committed; where L1 does not keep it, only until they have it. Whoever switched that
        before the commit has not cleared it, whoever does so later will."""
        if not self._backends.routing.reads_l1:
            self._hand_on_held(job, stored)
        ready = [place._replace(slot_word=ready_word(place.slot_word)) for _, place in stored]
        self._submit(ready, job.cache_salt, is_passing=not self._backends.routing.keeps_stores)
        return tuple(digest for digest, _ in stored)

    def _hand_on_held(self, job: StoreJob, stored: Sequence[Stored]) -> None:
        """Where L1 does not count, a tier may lack what L1 has."""
        packed = self.l1.lookup(self._key(job.cache_salt), [self.rank.rank_group], list(job.digests), None)[1]
        new = {place.slot for _, place in stored}
        held = [Place(slot, word, length) for slot, word, _, length in split_places(packed) if slot not in new]
        self._submit(held, job.cache_salt, is_passing=False)

    def _submit(self, places: list[Place], cache_salt: str, is_passing: bool) -> None:
        if places and self.rank.writes_to_tiers:
            begun_s = self._meter.clock()
            self.storage.stores.submit(
                self.pool, places, self._layout_text, cache_salt, self.rank.model_name, is_passing
            )
            self._meter.handed_on(self._meter.clock() - begun_s)
        elif is_passing:
            self.l1.let_go(places)

    def begin_step(self) -> None:
        """The loads that follow wait for the tiers for `blocking_timeout_s` all together, until this is called again;
        if it never is, each of them does."""
        self._step_ends_s = self._clock() + self.config.blocking_timeout_s

    @property
    def _load_ends_s(self) -> float:
        return min(self._step_ends_s, self._clock() + self.config.blocking_timeout_s)

    def retrieve(self, job: RetrieveJob) -> str:
        """Copy found chunks into the pages: empty, or why these pages must not be trusted. Ends its lookup.

        What L1 does not have is fetched first, as much at once as the pool has room for, within `blocking_timeout_s`.
        """
        try:
            return self._retrieve(job.parts, job.cache_salt, self._transfers, self._load_ends_s)
        finally:
            self.release((job.lookup_id,))

    def _retrieve(self, parts: Sequence[RetrievePart], cache_salt: str, transfers: PageTransfers, ends_s: float) -> str:
        key, failure = self._key(cache_salt), ""
        digests = [part.digest for part in parts]
        if len(self.l1.lookup(key, [self.rank.rank_group], digests, None)[0]) == len(parts):
            return transfers.retrieve(key, parts, self._backends.routing.retains)
        num_at_once = max(1, self.pool.pool_bytes // (_FETCH_SHARE * self.chunk_bytes))
        for start in range(0, len(parts), num_at_once):
            some = parts[start : start + num_at_once]
            held = self._bring_up(key, some, ends_s - self._clock())
            try:
                failure = transfers.retrieve(key, some, self._backends.routing.retains)
            finally:
                self.l1.unlock(held)
            if failure:
                break
        return failure

    def begin_retrieve(self, job: RetrieveJob) -> LayerLoad:
        """As `retrieve`, layer by layer. The end of the load ends its lookup."""
        key = self._key(job.cache_salt)
        held = self._bring_up(key, job.parts, self._load_ends_s - self._clock())
        try:
            return self._transfers.begin_retrieve(
                key, job, self._backends.routing.retains, lambda: self.release((job.lookup_id,))
            )
        finally:
            self.l1.unlock(held)  # the load has locked them itself

    def _bring_up(self, key: NamespaceKey, parts: Sequence[RetrievePart], wait_s: float) -> list[Place]:
        """Locked places of what had to be fetched, and of what came before it, or nothing."""
        digests, group = list(dict.fromkeys(part.digest for part in parts)), self.rank.rank_group
        num_held = len(self.l1.lookup(key, [group], digests, None)[0])
        if num_held == len(digests) or wait_s <= 0 or not self._fetcher.is_promising(key, digests[num_held]):
            return []
        routing = self._backends.routing

        def lock(num_chunks: int) -> list[Place]:
            return [place for place, _ in self.l1.lock_keys(key, group, digests[:num_chunks], routing.retains)]

        wanted = Wanted(key, digests, num_held, parts[-1].chunk_blocks)
        return self._fetcher.fetch(wanted, wait_s, routing, lock) or []

    # Telling

    def usage(self) -> Mapping[str, int]:
        """Bytes in use, by backend."""
        used = {L1_BACKEND: self.l1.memory_bytes()[0]}
        for name, tier in self._backends.tiers():
            used[name] = used.get(name, 0) + tier.adapter.usage().total_bytes_used
        return used

    # What operators use

    def _make_mock(self, config: EmbeddedConfig, copier: KVCopier, loads_into_pages: bool) -> MockTokens:
        layout = self.rank.layout
        chunk_blocks = layout.blocks_per_chunk(config.chunk_size)
        source = PageTransfers(self.rank, self.pool, copier, self.chunk_bytes, _MOCK_UID)
        scratch = copier if loads_into_pages else scratch_copier(layout, config.chunk_size)
        target = PageTransfers(self.rank, self.pool, scratch, self.chunk_bytes, _MOCK_UID)
        return MockTokens(
            layout, config.chunk_size, config.hash_algorithm,
            store=lambda job: self._store(job, source),
            lookup=lambda lookup_id, prompt: self.lookup(lookup_id, prompt, self.config.blocking_timeout_s),
            load_part=lambda part: self._retrieve(
                (part,), "", target, self._clock() + self.config.blocking_timeout_s
            ),
            release=self.release,
            first_block_of=lambda chunk: chunk * chunk_blocks if loads_into_pages else 0,
        )  # fmt: skip
