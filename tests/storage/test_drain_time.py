"""How long a stop waits for objects on their way to L2: as long as was said, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lmcache.l2.registry import parse_adapters
from lmcache.storage.manager import StorageConfig, StorageManager
from lmcache.storage.metrics import StorageMetrics
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.conftest import FakeClock
from tests.engine.tiered import Held
from tests.storage.test_manager import MEMORY, FakePool, Limits

DRAIN_S = 7.0


@pytest.fixture
def manager(clock: FakeClock) -> Iterator[StorageManager]:
    metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
    config = StorageConfig(parse_adapters([MEMORY]), drain_timeout_s=DRAIN_S)
    manager, threads = StorageManager(config, 0, 7, metrics, Limits(), clock), PeriodicThreadRegistry()
    manager.start(threads)
    yield manager
    manager.close()
    threads.stop_all()


class Closing(threading.Thread):
    """A close under way: `num_looks` at whether stores are left, and what it answered."""

    def __init__(self, manager: StorageManager) -> None:
        super().__init__()
        self.num_looks = 0
        self.answer: bool | None = None
        self._manager = manager
        look = manager.stores.wait_until_empty

        def counted(timeout_s: float) -> bool:
            self.num_looks += 1
            return look(timeout_s)

        manager.stores.wait_until_empty = counted  # type: ignore[method-assign]

    def run(self) -> None:
        self.answer = self._manager.close()

    def assert_goes_on(self) -> None:
        """It looks some more times, and has not ended then."""
        enough = self.num_looks + 3
        wait_until(lambda: self.num_looks >= enough)
        assert self.answer is None


def store_one(manager: StorageManager) -> Held:
    """An object whose write begins, and waits to be let go."""
    held, pool = Held(manager.tiers()[0].adapter, "_write"), FakePool()
    manager.stores.submit(pool, [pool.put(1)], "", "")  # type: ignore[arg-type]
    wait_until(lambda: held.begun)
    return held


def test_a_stop_waits_as_long_as_was_said(manager: StorageManager, clock: FakeClock) -> None:
    held, closing = store_one(manager), Closing(manager)
    closing.start()
    try:
        closing.assert_goes_on()
        clock.advance(DRAIN_S - 0.1)
        closing.assert_goes_on()
        clock.advance(0.2)
        closing.join(PATIENCE_S)
        assert closing.answer is False, "the write has not come back"
    finally:
        clock.advance(1000)
        held.let_go()
        closing.join(PATIENCE_S)


def test_a_stop_ends_with_the_last_store(manager: StorageManager) -> None:
    held, closing = store_one(manager), Closing(manager)
    closing.start()
    try:
        closing.assert_goes_on()
    finally:
        held.let_go()
        closing.join(PATIENCE_S)
    assert closing.answer is True
