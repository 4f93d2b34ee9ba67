"""Gauges that read what a half of the in-process mode holds: its engine, its threads, its statistics.

Each source is asked for anew at every reading, since engines and wrappers come and go. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lmcache.config.engine.tiers import DISK, REMOTE
from lmcache.embedded.metric_tiers import is_kind
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.telemetry.metrics import Counter
from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel

if TYPE_CHECKING:
    from lmcache.embedded.engine import EmbeddedEngine

# Gauge, and where it stands in the status of chunk statistics.
_STATISTICS = {
    "chunk_statistics_enabled": ("enabled",),
    "chunk_statistics_total_requests": ("total_requests",),
    "chunk_statistics_total_chunks": ("total_chunks",),
    "chunk_statistics_unique_chunks": ("unique_chunks",),
    "chunk_statistics_reuse_rate": ("reuse_rate",),
    "chunk_statistics_bloom_filter_size_mb": ("bloom_filter", "size_mb"),
    "chunk_statistics_bloom_filter_fill_rate": ("bloom_filter", "fill_rate"),
    "chunk_statistics_file_count": ("file_hash", "file_count"),
    "chunk_statistics_current_file_size": ("file_hash", "current_file_size"),
}


def watch_engine(metrics: EmbeddedMetrics, find_engine: Callable[[], EmbeddedEngine | None]) -> None:
    """Series are absent while there is no engine."""

    def watch(name: str, read: Callable[[EmbeddedEngine], float]) -> None:
        def value() -> float | None:
            engine = find_engine()
            return None if engine is None else read(engine)

        metrics.watch(name, value)

    watch("local_cache_usage", lambda engine: engine.l1.memory_bytes()[0])
    watch("remote_cache_usage", lambda engine: _usage(engine, REMOTE))
    watch("local_storage_usage", lambda engine: _usage(engine, DISK))
    watch("active_memory_objs_count", lambda engine: engine.l1.report()["total_object_count"])
    watch("pinned_memory_objs_count", lambda engine: engine.l1.report()["read_locked_count"])
    watch("pin_monitor_pinned_objects_count", lambda engine: engine.l1.report()["read_locked_count"])
    watch("local_cpu_hot_cache_count", _num_kept)
    watch("local_cpu_keys_in_request_count", lambda engine: len(engine.locks))
    watch("remote_put_task_num", lambda engine: engine.storage.stores.num_pending + engine.storage.stores.num_inflight)
    watch("lmcache_is_healthy", lambda engine: all(tier.is_healthy for tier in engine.storage.tiers()))
    watch("get_blocking_failed_count", lambda engine: _sum(engine.storage.metrics.prefetch_failure))
    watch("put_failed_count", lambda engine: _sum(engine.storage.metrics.store_dropped))
    watch("storage_events_ongoing_count", lambda engine: engine.storage.prefetches.num_jobs)


def _usage(engine: EmbeddedEngine, kind: str) -> float:
    return sum(num_bytes for name, num_bytes in engine.usage().items() if is_kind(name, kind))


def _num_kept(engine: EmbeddedEngine) -> float:
    report = engine.l1.report()
    return report["total_object_count"] - report["write_locked_count"] - report["temporary_count"]


def _sum(counter: Counter) -> float:
    return sum(counter.values().values())


def watch_threads(metrics: EmbeddedMetrics, registry: PeriodicThreadRegistry) -> None:
    def watch(name: str, is_counted: Callable[[PeriodicThread], bool]) -> None:
        metrics.watch(name, lambda: sum(map(is_counted, registry.all())))

    def of_level(level: ThreadLevel, is_counted: Callable[[PeriodicThread], bool]) -> Callable[[PeriodicThread], bool]:
        return lambda thread: thread.level == level and is_counted(thread)

    figures: dict[str, Callable[[PeriodicThread], bool]] = {
        "total": lambda thread: True,
        "running": lambda thread: thread.is_running,
        "active": lambda thread: thread.is_active,
    }
    for figure, is_counted in figures.items():
        watch(f"periodic_threads_{figure}_count", is_counted)
        for level in ThreadLevel:
            watch(f"periodic_threads_{level}_{figure}", of_level(level, is_counted))


def watch_statistics(metrics: EmbeddedMetrics, find_status: Callable[[], Mapping[str, object] | None]) -> None:
    """`find_status`: what GET /chunk_statistics/status shows; None where lookups are not counted."""

    def watch(name: str, path: tuple[str, ...]) -> None:
        metrics.watch(name, lambda: _number_at(find_status(), path))

    for name, path in _STATISTICS.items():
        watch(name, path)


def _number_at(status: object, path: tuple[str, ...]) -> float | None:
    """None where the strategy in use has no such figure."""
    for key in path:
        if not isinstance(status, Mapping):
            return None
        status = status.get(key)
    return float(status) if isinstance(status, int | float) else None
