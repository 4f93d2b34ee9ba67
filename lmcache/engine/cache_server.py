"""The engine of the server mode: composes pool and modules, guards them with one mutex.

Knows no socket: the dispatcher hands it messages, HTTP handlers ask it for reports.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lmcache.core.hashing import make_algorithm
from lmcache.core.keys import check_cache_salt, check_model_name
from lmcache.engine.checksums import BlockChecksums, ChecksumModule, ChecksumRequest, PostToPeer
from lmcache.engine.gauges import register_gauges
from lmcache.engine.l1_objects import L1Objects
from lmcache.engine.lookup import LookupModule
from lmcache.engine.management import LivenessConfig, ManagementModule
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.pool import SERVER_UID, Pool, PoolConfig
from lmcache.engine.prefetches import PrefetchModule, PrefetchTicket
from lmcache.engine.quota_cycle import QuotaCycle, TierLimits
from lmcache.engine.registry import Client, ClientRegistry
from lmcache.engine.report import report_engine, unhealthy_reason
from lmcache.engine.sessions import SessionTable
from lmcache.engine.store import StoreModule
from lmcache.engine.usage import TenantUsage
from lmcache.errors import NoInstanceError
from lmcache.l1.manager import L1Manager
from lmcache.quota.manager import QuotaManager
from lmcache.quota.wipes import WipeLog
from lmcache.storage.manager import StorageConfig, StorageManager
from lmcache.storage.metrics import StorageMetrics
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThread, ThreadLevel
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)

_EVICTION_INTERVAL_S = 1.0
# Between two slices of a clear, for whoever waits for the mutex.
_CLEAR_PAUSE_S = 0.0005
# How long a stop waits for the last answers to lookups.
_LAST_ANSWERS_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`lock_fraction`: the share of the pool one client may hold read-locked. `default_quota_bytes`: the
    limit of tenants without a quota; `quota_file`: where quotas survive a restart, None for nowhere."""

    pool: PoolConfig
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    session_ttl_s: float = 600.0
    read_ttl_s: float = 300.0
    lock_fraction: float = 0.5
    trigger_watermark: float | None = None
    eviction_ratio: float = 0.2
    default_quota_bytes: int = 0
    quota_file: pathlib.Path | None = None
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    metrics_sample_rate: float = 0.01


class MPCacheServer:
    """Thread-safe through `mutex`, which every call below takes itself unless it says otherwise."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: MetricRegistry,
        post: PostToPeer,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
        random_id: Callable[[], int] = lambda: secrets.randbits(63) | 1,
    ) -> None:
        """Opens the pool; raises PoolError, ConfigError."""
        self.config = config
        self.metrics = EngineMetrics(metrics, config.metrics_sample_rate, clock)
        self._clock = clock
        self._steps = steps
        self._random_id = random_id
        self.mutex = threading.RLock()
        self._clear_mutex = threading.Lock()
        self.boot_id = random_id()
        self.quotas = QuotaManager(config.default_quota_bytes, config.quota_file)
        self.wipes = WipeLog(metrics)
        limits = TierLimits(self.quotas, self.wipes, lambda: self.usage)
        self._quota_cycle = QuotaCycle(limits, self._open_l1)
        # Started and stopped by whoever runs the engine.
        self.eviction_thread = PeriodicThread(
            "lmcache-l1-eviction", ThreadLevel.CRITICAL, _EVICTION_INTERVAL_S, self.evict_cycle
        )
        self.pool = Pool(config.pool, clock, steps, self.quotas)
        self.pool_lost_error = ""
        self.registry = ClientRegistry(make_algorithm(config.hash_algorithm), config.chunk_size, clock)
        self.sessions = SessionTable(clock, config.session_ttl_s, config.read_ttl_s)
        l2_metrics = StorageMetrics(metrics, self.metrics.l1_read_failure, self.metrics.l1_allocation_failure)
        self.storage = StorageManager(config.storage, SERVER_UID, self.boot_id, l2_metrics, limits, clock)
        self.prefetches = PrefetchModule(
            self.storage, self.registry, make_algorithm(config.hash_algorithm), config.chunk_size, clock
        )
        self.lookups = LookupModule(
            self.registry, self.sessions, self.prefetches, self.metrics, config.chunk_size,
            int(config.pool.geometry.pool_bytes * config.lock_fraction), steps,
        )  # fmt: skip
        self.stores = StoreModule(self.registry, self.storage.stores, self.metrics, config.chunk_size, steps)
        self.management = ManagementModule(
            self.registry, self.sessions, self.stores, self.prefetches, self.metrics, config.liveness, clock
        )
        self.checksums = ChecksumModule(post)
        self.l1_objects = L1Objects(self.mutex, lambda: self.pool, self.management.note_removed)
        self.usage = TenantUsage(self.storage, lambda: self.pool.l1, config.pool.eviction_policy)
        register_gauges(metrics, lambda: self.pool, self.sessions, self.prefetches)

    # Loops

    def evict_cycle(self) -> dict[str, object]:
        """One cycle of the eviction loop: hide late writes, delete behind resets, follow watermark and quotas."""
        with self.mutex:
            self.metrics.l1_eviction_loop_ticks.add(1)
            if self.pool.is_closed:
                return {"waiting": "for room to make the pool anew"}
            l1 = self.pool.l1
            expired = l1.quarantine_expired()
            self.metrics.writes_expired.add(expired)
            deleted = self.management.delete_dying_roots(self.pool)
            evicted = self._evict_to_watermark()
            self.metrics.sessions_expired.add(self.sessions.expire(l1))
            self.management.note_removed(l1)
        beyond = self._quota_cycle.run()
        return {"writes_expired": expired, "deleted_behind": deleted, "evicted": evicted, "beyond_quota": beyond}

    @contextlib.contextmanager
    def _open_l1(self) -> Iterator[L1Manager | None]:
        """L1 for one slice of the quota cycle; what it evicts is announced."""
        with self.mutex:
            l1 = None if self.pool.is_closed else self.pool.l1
            yield l1
            if l1 is not None:
                self.management.note_removed(l1)

    def _evict_to_watermark(self) -> int:
        watermark = self.config.trigger_watermark
        if watermark is None:
            return 0
        used, total = self.pool.l1.memory_bytes()
        if not total or used <= watermark * total:
            return 0
        num_objects = int(self.pool.l1.report()["total_object_count"])
        evicted = self.pool.l1.evict_to(int(watermark * total), max(1, int(num_objects * self.config.eviction_ratio)))
        self.metrics.l1_eviction_loop_triggered.add(1 if evicted else 0)
        return evicted

    def reap_cycle(self) -> dict[str, object]:
        """One cycle of the reaper: dead and silent clients, and a pool that vanished."""
        with self.mutex:
            if self.pool.is_closed or self.pool.files.is_lost():
                self._reopen_pool()
            return self.management.reap(self.pool)

    def _reopen_pool(self) -> None:
        """Someone removed the pool files: start over with new ones, under a new boot id.

        Clients notice the boot id and register again. Whoever still has the old files
        mapped reads what it was promised; nobody writes to them any more.
        """
        logger.error(
            "the pool files in %s were removed; all objects are lost, making new files", self.pool.files.folder
        )
        self.metrics.pools_lost.add(1)
        for uid in list(self.registry.clients):
            self.management.unregister(self.pool, uid)
            self.stores.forget(uid)
        self.boot_id = self._random_id()
        self.pool.abandon()
        # Whatever lies there now: our own tiers may still be loading into the slots of the old files.
        self.pool = Pool(self.config.pool, self._clock, self._steps, self.quotas, adopts=False)

    # Operators

    def clear(self, force: bool = True) -> int:
        """Remove what L1 holds now (without `force`, but what is locked); forced, hide writes under way.

        In slices with a pause between them: requests and probes go on meanwhile. Not under the mutex.
        """
        with self._clear_mutex:
            self._note_integrity("before a clear")
            pool, num_removed, slot = self.pool, 0, 0
            while slot < self.config.pool.geometry.num_records:
                with self.mutex:
                    if self.pool is not pool or pool.is_closed:
                        break  # and with the pool, all that it held
                    num_more, slot = self.management.clear_slice(pool.l1, slot, force)
                num_removed += num_more
                time.sleep(_CLEAR_PAUSE_S)
            self._note_integrity("after a clear")
        logger.info("cleared %d objects of L1%s", num_removed, "" if force else " that nobody had locked")
        return num_removed

    def _note_integrity(self, when: str) -> None:
        """A clear is also the remedy for a state that went wrong: it says so, and goes on."""
        with self.mutex:
            if reason := unhealthy_reason(self.pool):
                logger.error("L1 is not healthy %s: %s", when, reason)

    @property
    def cache_contexts(self) -> dict[int, Client]:
        """Every registered KV context by instance id. Any thread."""
        return {worker.instance_id: worker for worker in self.registry.workers()}

    def block_checksums(self, instance_id: int, request: ChecksumRequest) -> BlockChecksums:
        """MD5s of a worker's blocks as they are now. Blocks until it has answered; see `ChecksumModule.of_worker`."""
        worker = self.worker(instance_id)
        if worker is None:
            raise NoInstanceError(f"instance_id {instance_id} not registered")
        return self.checksums.of_worker(worker, request)

    def prefetch_tokens(
        self, model_name: str, world_size: int, token_ids: Sequence[int], cache_salt: str
    ) -> PrefetchTicket | None:
        """Bring a prompt from L2 to L1, for every engine that could use it. None: nothing to do. Raises
        KeyFormatError, TokenRangeError."""
        check_model_name(model_name)
        check_cache_salt(cache_salt)
        with self.mutex:
            roots = self.prefetches.roots_of(model_name, world_size)
        chains = self.prefetches.chains(roots, token_ids)
        with self.mutex:
            return self.prefetches.submit_chains(self.pool, model_name, world_size, cache_salt, chains)

    def prefetch_ticket(self, request_id: str) -> PrefetchTicket | None:
        """How an operator's prefetch fares; None for one that is not known (any more)."""
        with self.mutex:
            return self.prefetches.ticket(request_id)

    def client(self, uid: int) -> Client | None:
        """The registered client, seen now. Under the mutex."""
        client = self.registry.clients.get(uid)
        if client is not None:
            client.last_seen_s = self._clock()
        return client

    def worker(self, instance_id: int) -> Client | None:
        return next((worker for worker in self.registry.workers() if worker.instance_id == instance_id), None)

    def report_status(self) -> dict[str, object]:
        """The engine's own fields, the storage manager's, and what each module contributes."""
        l2 = self.storage.report_status()  # adapters may take their time, and no request waits for them
        with self.mutex:
            return report_engine(self, l2)

    def answer_waiting(self) -> None:
        """Before the end: lookups that wait for L2 are answered with what L1 holds, and none waits from now on."""
        with self.mutex:
            is_anyone_waiting = self.prefetches.stop_waiting()
        if is_anyone_waiting and not self.storage.prefetches.answer_all(_LAST_ANSWERS_S):
            logger.error("some lookups that wait for L2 are left without an answer")

    def close(self, keep: bool | None = None) -> None:
        """Let go of the pool, after the tiers. Nobody may call the engine afterwards."""
        has_writers = not self.storage.close()
        with self.mutex:
            self.pool.close(keep, has_writers)
