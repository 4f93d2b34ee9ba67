"""The periodic threads of the storage manager, and how they fare. Knows no tier: a body is a callable."""

from __future__ import annotations

from collections.abc import Callable

from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel

_INTERVAL_S = 1.0
Body = Callable[[], dict[str, object]]


class StorageLoops:
    def __init__(
        self, store: Body, prefetch: Body, next_prefetch_in_s: Callable[[], float], evict: Body, scrub: Body
    ) -> None:
        self.store = PeriodicThread("lmcache-l2-store", ThreadLevel.HIGH, _INTERVAL_S, store)
        self.prefetch = PeriodicThread(
            "lmcache-l2-prefetch", ThreadLevel.HIGH, _INTERVAL_S, prefetch, next_run_in_s=next_prefetch_in_s
        )
        self.eviction = PeriodicThread("lmcache-l2-eviction", ThreadLevel.HIGH, _INTERVAL_S, evict)
        self.scrub = PeriodicThread("lmcache-l2-scrub", ThreadLevel.LOW, _INTERVAL_S, scrub)

    def start(self, threads: PeriodicThreadRegistry, scrubs: bool) -> None:
        for thread in (self.store, self.prefetch, self.eviction):
            threads.start(thread)
        if scrubs:
            threads.start(self.scrub)

    @property
    def are_healthy(self) -> bool:
        """Those that everything waits for; a scrub may be late."""
        return all(thread.is_active for thread in (self.store, self.prefetch, self.eviction))


def report_thread(thread: PeriodicThread) -> dict[str, object]:
    return {"is_healthy": thread.is_active, "thread_alive": thread.is_running}
