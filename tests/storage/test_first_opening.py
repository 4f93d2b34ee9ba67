"""A start waits for its tiers, but not for those that are away."""

from __future__ import annotations

import threading

from lmcache.errors import BackendError
from lmcache.l2.registry import parse_adapters
from lmcache.storage.manager import StorageConfig, StorageManager
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier_life import TierState
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.storage.test_manager import MEMORY, Limits

_FOR_EVER_S = 100 * PATIENCE_S


def test_a_start_waits_for_a_tier_until_it_is_open_or_away() -> None:
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    manager = StorageManager(StorageConfig(parse_adapters((MEMORY, MEMORY))), 0, 7, metrics, Limits())
    away, slow = manager.tiers()
    go_on = threading.Event()

    def fail() -> None:
        raise BackendError("no route")

    away.adapter.open = fail  # type: ignore[method-assign]
    slow.adapter.open = lambda: go_on.wait(_FOR_EVER_S)  # type: ignore[method-assign, assignment, return-value]
    threads = PeriodicThreadRegistry()
    start = threading.Thread(target=manager.start, args=(threads, _FOR_EVER_S))
    start.start()
    wait_until(lambda: away.breaker.last_error == "no route")
    assert start.is_alive(), "the other is still being opened"
    go_on.set()
    start.join(PATIENCE_S)
    assert not start.is_alive()
    assert (away.state, slow.state) == (TierState.OPENING, TierState.ACTIVE)
    manager.close()
    threads.stop_all()
