"""The instruments the engine counts with, under the documented names."""

from __future__ import annotations

from collections.abc import Callable

from lmcache.telemetry.lifecycle import ChunkLifecycle
from lmcache.telemetry.metrics import MetricRegistry

_PREFIX = "lmcache_mp_"


class EngineMetrics:
    """Counters of one engine. `registry` is what `/metrics` shows; `sample_rate` that of the lifecycle histograms."""

    def __init__(self, registry: MetricRegistry, sample_rate: float, clock: Callable[[], float]) -> None:
        self.registry = registry
        self.lifecycle = ChunkLifecycle(registry, sample_rate, clock)
        counter = registry.counter
        self.l1_read = counter(_PREFIX + "l1_read_chunks", "Objects read-locked for a load", "cache_salt")
        self.l1_write = counter(_PREFIX + "l1_write_chunks", "Objects committed", "cache_salt")
        self.l1_evicted = counter(_PREFIX + "l1_evicted_chunks", "Objects evicted or deleted", "cache_salt")
        self.l1_eviction_loop_ticks = counter(_PREFIX + "l1_eviction_loop_ticks", "Cycles of the eviction loop")
        self.l1_eviction_loop_triggered = counter(
            _PREFIX + "l1_eviction_loop_triggered", "Cycles of the eviction loop that evicted"
        )
        self.l1_allocation_failure = counter(
            _PREFIX + "l1_allocation_failure_chunks", "Objects that found no room", "during", "model_name"
        )
        self.lookups = counter(_PREFIX + "lookups_requests", "Locking lookups")
        self.lookup_requested = counter(
            _PREFIX + "lookup_requested_tokens", "Tokens asked for, whole chunks", "model_name", "cache_salt"
        )
        self.lookup_hit = counter(
            _PREFIX + "lookup_hit_tokens", "Tokens found, leading chunks", "model_name", "cache_salt"
        )
        self.lookup_hit_l1 = counter(_PREFIX + "lookup_hit_l1_tokens", "Tokens found in L1", "model_name", "cache_salt")
        self.lookup_hit_l2 = counter(
            _PREFIX + "lookup_hit_l2_tokens", "Tokens fetched from L2 for a lookup", "model_name", "cache_salt"
        )
        self.store_requests = counter(_PREFIX + "num_submitted_stores_requests", "Batches reserved by workers")
        self.store_finished = counter(_PREFIX + "num_finished_stores_requests", "Batches committed by workers")
        self.l1_read_failure = counter(
            _PREFIX + "l1_read_failure_chunks", "Objects that were gone when they were to be read",
            "during", "reason", "model_name",
        )  # fmt: skip
        self.chunks_loaded = counter(
            _PREFIX + "num_chunks_loaded", "Chunks that workers loaded", "worker_id", "model_name", "cache_salt"
        )
        self.l0_l1_load_throughput = registry.histogram(
            _PREFIX + "l0_l1_load_throughput_GB_per_second", "Of the loads of one request, by a worker",
            "engine_id", "device", "model_name",
        )  # fmt: skip
        self.l0_l1_store_throughput = registry.histogram(
            _PREFIX + "l0_l1_store_throughput_GB_per_second", "Of the stores of one request, by a worker",
            "engine_id", "device", "model_name",
        )  # fmt: skip
        self.refused_commits = counter(
            _PREFIX + "refused_commits_chunks", "Objects whose commit came too late: their slot was given up"
        )
        self.skipped_stores = counter(_PREFIX + "skipped_stores_chunks", "Objects not reserved, by reason", "reason")
        self.sessions_expired = counter(_PREFIX + "sessions_expired", "Sessions ended for being idle too long")
        self.writes_expired = counter(_PREFIX + "writes_expired_chunks", "Writes hidden for taking too long")
        self.workers_reaped = counter(_PREFIX + "workers_reaped", "Clients unregistered for silence or death", "reason")
        self.bad_requests = counter(_PREFIX + "bad_requests", "Requests answered with an error", "code")
        self.pools_lost = counter(_PREFIX + "pools_lost", "Times the pool files vanished and were made anew")
