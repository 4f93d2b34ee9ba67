"""The engine of the server mode: composes pool and modules, guards them with one mutex.

Knows no socket: the dispatcher hands it messages, HTTP handlers ask it for reports.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lmcache.core.hashing import make_algorithm
from lmcache.engine.checksums import ChecksumModule, PostToPeer
from lmcache.engine.lookup import LookupModule
from lmcache.engine.management import LivenessConfig, ManagementModule
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.pool import Pool, PoolConfig
from lmcache.engine.registry import Client, ClientRegistry
from lmcache.engine.sessions import SessionTable
from lmcache.engine.store import StoreModule
from lmcache.errors import LMCacheError
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.steps import NO_STEPS, StepObserver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`lock_fraction`: the share of the pool one client may hold read-locked."""

    pool: PoolConfig
    chunk_size: int = 256
    hash_algorithm: str = "blake3"
    session_ttl_s: float = 600.0
    read_ttl_s: float = 300.0
    lock_fraction: float = 0.5
    trigger_watermark: float | None = None
    eviction_ratio: float = 0.2
    liveness: LivenessConfig = field(default_factory=LivenessConfig)


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
        self.metrics = EngineMetrics(metrics)
        self._clock = clock
        self._steps = steps
        self._random_id = random_id
        self.mutex = threading.RLock()
        self.boot_id = random_id()
        self.pool = Pool(config.pool, clock, steps)
        self.pool_lost_error = ""
        self.registry = ClientRegistry(make_algorithm(config.hash_algorithm), config.chunk_size, clock)
        self.sessions = SessionTable(clock, config.session_ttl_s, config.read_ttl_s)
        self.lookups = LookupModule(
            self.registry, self.sessions, self.metrics, config.chunk_size,
            int(config.pool.geometry.pool_bytes * config.lock_fraction), steps,
        )  # fmt: skip
        self.stores = StoreModule(self.registry, self.metrics, config.chunk_size, steps)
        self.management = ManagementModule(
            self.registry, self.sessions, self.stores, self.metrics, config.liveness, clock
        )
        self.checksums = ChecksumModule(post)
        self.metrics.registry.gauge("lmcache_mp_l1_memory_usage_bytes", "Bytes of L1 in use", self._read_used)
        self.metrics.registry.gauge("lmcache_mp_l1_usage_ratio", "Share of L1 in use", self._read_ratio)
        self.metrics.registry.gauge("lmcache_mp_active_sessions", "Requests with a session", self._read_sessions)
        self.metrics.registry.gauge(
            "lmcache_mp_l1_quarantined_bytes", "Bytes given up by late or dead writers, not reusable yet",
            self._read_quarantined,
        )  # fmt: skip

    # Loops

    def evict_cycle(self) -> dict[str, object]:
        """One cycle of the eviction loop: hide late writes, delete behind resets, follow the watermark."""
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
        return {"writes_expired": expired, "deleted_behind": deleted, "evicted": evicted}

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
        self.pool.close(keep=True)
        self.pool = Pool(self.config.pool, self._clock, self._steps)

    # Operators

    def clear(self, force: bool = True) -> int:
        with self.mutex:
            return self.management.clear(self.pool.l1, force)

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
        with self.mutex:
            workers = self.registry.workers()
            storage = self._report_storage()
            return {
                "is_healthy": storage["is_healthy"],
                "engine_type": type(self).__name__,
                "chunk_size": self.config.chunk_size,
                "hash_algorithm": self.config.hash_algorithm,
                "active_sessions": len(self.sessions),
                "registered_gpu_ids": [worker.instance_id for worker in workers],
                "cache_context_meta": {str(worker.instance_id): self._report_context(worker) for worker in workers},
                "registered_non_cuda_instance_ids": [],
                "non_cuda_context_meta": {},
                "active_prefetch_jobs": 0,
                "storage_manager": storage,
                **self.management.report(),
            }

    def _report_storage(self) -> dict[str, object]:
        l1 = self._report_l1()
        return {"is_healthy": l1["is_healthy"], "l1_manager": l1, "l2_adapters": [], "num_l2_adapters": 0}

    def _report_l1(self) -> dict[str, object]:
        recovery = self.pool.recovery
        return {
            "is_healthy": not self._unhealthy_reason(),
            "unhealthy_reason": self._unhealthy_reason(),
            **self.pool.l1.report(),
            "memory_configured_bytes": self.config.pool.geometry.pool_bytes,
            "is_populating": self.pool.is_populating,
            "open_store_batches": self.stores.num_open_batches,
            "eviction_policy": self.config.pool.eviction_policy,
            "trigger_watermark": self.config.trigger_watermark,
            "eviction_ratio": self.config.eviction_ratio,
            "write_ttl_seconds": self.config.pool.write_ttl_s,
            "read_ttl_seconds": self.config.read_ttl_s,
            "pool_folder": str(self.pool.files.folder),
            "recovered_object_count": recovery.num_ready,
            "recovered_dropped_count": recovery.num_dropped,
        }

    def _unhealthy_reason(self) -> str:
        if self.pool.files.is_lost():
            return "the pool files were removed"
        try:
            self.pool.l1.check_allocator()
        except LMCacheError as error:
            return str(error)
        return self.pool.populate_error

    def _report_context(self, worker: Client) -> dict[str, object]:
        layout = worker.layout
        if layout is None:
            return {}
        first_layers = [sum(group.num_layers for group in layout.groups[:index]) for index in range(len(layout.groups))]
        groups = [
            {
                "kernel_group_idx": index,
                "engine_group_idx": 0,
                "object_group_idx": 0,
                "num_layers": group.num_layers,
                "layer_indices": list(range(first, first + group.num_layers)),
                "tokens_per_block": layout.block_size,
                "slots_per_block": layout.block_size,
                "dtype": group.dtype,
                "engine_kv_concrete_shape": str(list(group.shape)),
                "is_mla": layout.is_mla,
                "engine_kv_format": layout.format_name,
                "engine_kv_shape": "[blocks, heads, tokens, content]",
                "attention_backend": group.attention_backend,
            }
            for index, (group, first) in enumerate(zip(layout.groups, first_layers, strict=True))
        ]
        return {
            "model_name": worker.model_name,
            "world_size": self.registry.engine_of(worker).world_size,
            "kv_cache_layout": {
                "num_layers": layout.num_layers,
                "num_blocks": layout.num_blocks,
                "cache_size_per_token": layout.bytes_per_token,
                "kernel_groups": groups,
            },
        }

    def _read_used(self) -> dict[tuple[str, ...], float]:
        return {(): self.pool.l1.memory_bytes()[0]}

    def _read_ratio(self) -> dict[tuple[str, ...], float]:
        used, total = self.pool.l1.memory_bytes()
        return {(): used / total if total else 0.0}

    def _read_sessions(self) -> dict[tuple[str, ...], float]:
        return {(): len(self.sessions)}

    def _read_quarantined(self) -> dict[tuple[str, ...], float]:
        return {(): float(self.pool.l1.report()["quarantined_bytes"])}

    def close(self, keep: bool | None = None) -> None:
        """Let go of the pool. Nobody may call the engine afterwards."""
        with self.mutex:
            self.pool.close(keep)
