"""The status of the engine, as operators are told it. Under the engine's mutex."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmcache.engine.contexts import report_context
from lmcache.engine.identities import report_identities
from lmcache.engine.pool import Pool
from lmcache.errors import LMCacheError

if TYPE_CHECKING:
    from lmcache.engine.cache_server import MPCacheServer


def report_engine(engine: MPCacheServer, l2: dict[str, object]) -> dict[str, object]:
    """The engine's own fields and what each module contributes; `l2`: what the storage manager says."""
    l1 = _report_l1(engine)
    eviction = _report_l1_eviction(engine)
    is_healthy = all(part["is_healthy"] for part in (l2, l1, eviction))
    return {
        "is_healthy": is_healthy,
        "engine_type": type(engine).__name__,
        "chunk_size": engine.config.chunk_size,
        "hash_algorithm": engine.config.hash_algorithm,
        "active_sessions": len(engine.sessions),
        **_report_contexts(engine),
        "active_prefetch_jobs": engine.prefetches.num_active,
        "storage_manager": {**l2, "is_healthy": is_healthy, "l1_manager": l1, "l1_eviction_controller": eviction},
        **engine.management.report(),
    }


def _report_contexts(engine: MPCacheServer) -> dict[str, object]:
    workers = engine.registry.workers()
    return {
        "registered_gpu_ids": [worker.instance_id for worker in workers],
        "cache_context_meta": {
            str(worker.instance_id): report_context(worker, engine.registry.engine_of(worker).world_size)
            for worker in workers
        },
        "registered_non_cuda_instance_ids": [],
        "non_cuda_context_meta": {},
        "engine_identities": report_identities(engine.registry),
    }


def _report_l1(engine: MPCacheServer) -> dict[str, object]:
    pool, config = engine.pool, engine.config
    reason = unhealthy_reason(pool)
    return {
        "is_healthy": not reason,
        "unhealthy_reason": reason,
        **pool.l1.report(),
        "memory_configured_bytes": config.pool.geometry.pool_bytes,
        "is_populating": pool.is_populating,
        "open_store_batches": engine.stores.num_open_batches,
        "write_ttl_seconds": config.pool.write_ttl_s,
        "read_ttl_seconds": config.read_ttl_s,
        "pool_folder": str(pool.files.folder),
        "recovered_object_count": pool.recovery.num_ready,
        "recovered_dropped_count": pool.recovery.num_dropped,
    }


def _report_l1_eviction(engine: MPCacheServer) -> dict[str, object]:
    config = engine.config
    return {
        "is_healthy": engine.eviction_thread.is_active,
        "thread_alive": engine.eviction_thread.is_running,
        "eviction_policy": config.pool.eviction_policy,
        # Without one: when L1 is full.
        "trigger_watermark": 1.0 if config.trigger_watermark is None else config.trigger_watermark,
        "eviction_ratio": config.eviction_ratio,
    }


def unhealthy_reason(pool: Pool) -> str:
    """What is wrong with L1, empty: nothing."""
    if pool.files.is_lost():
        return "the pool files were removed"
    try:
        pool.l1.check_allocator()
    except LMCacheError as error:
        return str(error)
    return pool.populate_error
