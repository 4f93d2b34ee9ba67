"""What can be asked of the engine at any time: gauges over pool, sessions and prefetches."""

from __future__ import annotations

from collections.abc import Callable

from lmcache.engine.pool import Pool
from lmcache.engine.prefetches import PrefetchModule
from lmcache.engine.sessions import SessionTable
from lmcache.telemetry.metrics import Labels, MetricRegistry

_PREFIX = "lmcache_mp_"


def register_gauges(
    metrics: MetricRegistry, open_pool: Callable[[], Pool], sessions: SessionTable, prefetches: PrefetchModule
) -> None:
    """`open_pool`: a pool that was lost is replaced by another."""

    def usage_ratio() -> float:
        used, total = open_pool().l1.memory_bytes()
        return used / total if total else 0.0

    def gauge(name: str, help_text: str, read: Callable[[], float]) -> None:
        def read_labelled() -> dict[Labels, float]:
            return {(): float(read())}

        metrics.gauge(_PREFIX + name, help_text, read_labelled)

    gauge("l1_memory_usage_bytes", "Bytes of L1 in use", lambda: open_pool().l1.memory_bytes()[0])
    gauge("l1_usage_ratio", "Share of L1 in use", usage_ratio)
    gauge("active_prefetch_jobs", "Prefetches queued or under way", lambda: prefetches.num_active)
    gauge("active_sessions", "Requests with a session", lambda: len(sessions))
    gauge(
        "l1_quarantined_bytes", "Bytes given up by late or dead writers, not reusable yet",
        lambda: open_pool().l1.report()["quarantined_bytes"],
    )  # fmt: skip
