"""The storage manager with real adapters: stores, retries, limits, quotas, the scrub, adapters that come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.errors import AdapterNotFoundError, BackendError, ConfigError
from lmcache.l1.tier_moves import HeldObject
from lmcache.l1.values import Place
from lmcache.l2.base import Source, StoreStatus
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.registry import parse_adapters
from lmcache.storage.manager import StorageConfig, StorageManager
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.scrubber import ScrubConfig
from lmcache.storage.tier_life import TierState
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until

OBJECT_BYTES = 1000
MEMORY = '{"type": "memory", "max_size_gb": 1}'


class Limits:
    """Limits by tenant, and what was taken from whom."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.taken: list[tuple[str, str, int]] = []

    def excess(self, usage_bytes: Mapping[str, int]) -> Mapping[str, int]:
        return {
            salt: used - self.limits[salt]
            for salt, used in usage_bytes.items()
            if used > self.limits.get(salt, 1 << 60)
        }

    def evicted(self, tier: str, tenant: str, num_objects: int, num_bytes: int) -> None:
        self.taken.append((tier, tenant, num_objects))


class FakeL1:
    """Places that hold what a test says, as far as the store controller looks."""

    def __init__(self) -> None:
        self.held: dict[Place, HeldObject] = {}
        self.removed: list[Place] = []

    def describe(self, place: Place) -> HeldObject | None:
        return self.held.get(place)

    def holds(self, place: Place) -> bool:
        return place in self.held

    def remove(self, places: list[Place]) -> int:
        self.removed += places
        return len(places)


class FakePool:
    def __init__(self, pool_bytes: int = 64 * OBJECT_BYTES) -> None:
        self.l1 = FakeL1()
        self.pool_bytes = pool_bytes
        self.is_closed = False

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(bytes([offset % 256]) * length)

    def put(self, number: int, salt: str = "") -> Place:
        place = Place(number, 1, OBJECT_BYTES)
        self.l1.held[place] = HeldObject(key(number, salt), number, OBJECT_BYTES)
        return place


def key(number: int, salt: str = "") -> ObjectKey:
    return ObjectKey(number.to_bytes(32, "big"), "m", 1, 0, salt)


class Site:
    def __init__(self, manager: StorageManager, limits: Limits) -> None:
        self.manager = manager
        self.limits = limits
        self.pool = FakePool()

    def store(self, *numbers: int, salt: str = "") -> None:
        self.manager.stores.submit(self.pool, [self.pool.put(number, salt) for number in numbers], "", salt)  # type: ignore[arg-type]

    def adapter(self, index: int = 0) -> MockL2Adapter:
        adapter = self.manager.tiers()[index].adapter
        assert isinstance(adapter, MockL2Adapter)
        return adapter

    def held(self, index: int = 0) -> set[int]:
        return {int.from_bytes(held.chunk_hash, "big") for held in self.adapter(index).keys_after(0, 1000)[0]}


OpenSite = Callable[..., Site]


@pytest.fixture
def open_site() -> Iterator[OpenSite]:
    opened: list[tuple[StorageManager, PeriodicThreadRegistry]] = []

    def open_(*adapters: str, **settings: object) -> Site:
        config = StorageConfig(parse_adapters(adapters), **settings)  # type: ignore[arg-type]
        limits = Limits()
        metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
        manager = StorageManager(config, 0, 7, metrics, limits)
        threads = PeriodicThreadRegistry()
        manager.start(threads)
        opened.append((manager, threads))
        return Site(manager, limits)

    yield open_
    for manager, threads in opened:
        manager.close()
        threads.stop_all()


def fail_times(adapter: MockL2Adapter, count: int) -> list[str]:
    """The next `count` writes fail; what was tried."""
    tried: list[str] = []
    write = adapter._write

    def failing(key: ObjectKey, header: bytes, data: memoryview) -> int:
        tried.append(key.chunk_hash[-1:].hex())
        if len(tried) <= count:
            raise BackendError("no route")
        return write(key, header, data)

    adapter._write = failing  # type: ignore[method-assign]
    return tried


def hold_writes(site: Site) -> Callable[[], None]:
    """Writes of the first adapter wait until what is returned is called."""
    may_pass, write = threading.Event(), site.adapter()._write

    def wait_and_write(*args: object) -> int:
        assert may_pass.wait(2 * PATIENCE_S)
        return write(*args)  # type: ignore[arg-type]

    site.adapter()._write = wait_and_write  # type: ignore[method-assign]
    return may_pass.set


def test_every_object_goes_to_every_adapter(open_site: OpenSite) -> None:
    site = open_site(MEMORY, MEMORY)
    site.store(1, 2, 3)
    wait_until(lambda: site.held(0) == site.held(1) == {1, 2, 3})
    target = bytearray(OBJECT_BYTES)
    site.adapter(1).load(key(2), memoryview(target))
    assert bytes(target) == b"\x02" * OBJECT_BYTES
    assert site.pool.l1.removed == []
    metrics = site.manager.metrics
    wait_until(lambda: metrics.store_completed.value("memory") == metrics.store_submitted.value() == 6)


def test_l1_lets_go_only_of_what_every_adapter_has(open_site: OpenSite) -> None:
    site = open_site(MEMORY, '{"type": "memory", "max_size_gb": 0.000002}', store_policy="skip_l1")
    for number in (1, 2, 3, 4):
        site.store(number)
        assert site.manager.stores.wait_until_empty(PATIENCE_S)
    # The second adapter has room for one object at a time, and so got each of them.
    assert [place.slot for place in site.pool.l1.removed] == [1, 2, 3, 4]
    site.adapter(1).index.capacity_bytes = 10
    site.store(5)
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert 5 in site.held(0)
    assert 5 not in [place.slot for place in site.pool.l1.removed], "one adapter does not have it"


def test_a_failed_store_is_tried_again_and_then_given_up(open_site: OpenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache.storage.store_controller._RETRY_S", 0.01)
    monkeypatch.setattr("lmcache.storage.loops._INTERVAL_S", 0.02)
    site = open_site(MEMORY)
    tried = fail_times(site.adapter(), 2)
    site.store(1)
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert (site.held(), tried) == ({1}, ["01"] * 3)
    tried = fail_times(site.adapter(), 3)
    site.store(2)
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert (site.held(), tried) == ({1}, ["02"] * 3)
    metrics = site.manager.metrics
    assert metrics.store_dropped.value("memory", "failed") == 1
    wait_until(lambda: metrics.store_submitted.value() == metrics.store_completed.value("memory") == 6)
    assert metrics.store_completed_objects.value("") == 1


def test_what_left_l1_is_not_stored(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    written = fail_times(site.adapter(), 0)
    place = site.pool.put(1)
    del site.pool.l1.held[place]
    site.manager.stores.submit(site.pool, [place], "", "", "org/m")  # type: ignore[arg-type]
    site.store(2)
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert (site.held(), written) == ({2}, ["02"])
    metrics = site.manager.metrics
    assert metrics.l1_read_failure.value("l2_store", "not_found", "org/m") == 1
    wait_until(lambda: metrics.store_submitted.value() == metrics.store_completed.value("memory") == 1)


def test_adapters_come_and_go_while_it_runs(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    site.store(1)
    wait_until(lambda: site.held() == {1})
    index = site.manager.add_adapter(parse_adapters([MEMORY])[0])
    wait_until(lambda: site.manager.tiers()[-1].state is TierState.ACTIVE)
    site.store(2)
    wait_until(lambda: site.held(1) == {2})
    first = site.manager.tiers()[0]
    site.manager.remove_adapter(first.index)
    assert first.state is TierState.CLOSED
    assert [tier.index for tier in site.manager.tiers()] == [index]
    site.store(3)
    wait_until(lambda: site.held() == {2, 3})
    with pytest.raises(AdapterNotFoundError):
        site.manager.remove_adapter(first.index)


def test_a_removed_adapter_finishes_what_it_took(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    adapter, tier, let_pass = site.adapter(), site.manager.tiers()[0], hold_writes(site)
    site.store(1, 2)
    wait_until(lambda: tier.inflight()[0] == 2)
    removing = threading.Thread(target=site.manager.remove_adapter, args=(0, 2 * PATIENCE_S))
    removing.start()
    wait_until(lambda: tier.state is TierState.DRAINING)
    let_pass()
    removing.join()
    assert adapter.num_objects == 2


def test_the_watermark_is_kept_oldest_first(open_site: OpenSite) -> None:
    site = open_site(
        '{"type": "memory", "max_size_gb": 1, '
        '"eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.5, "eviction_ratio": 1}}'
    )
    for number in range(1, 9):
        site.store(number)
        wait_until(lambda number=number: number in site.held())
    size = site.adapter().usage().total_bytes_used // 8
    site.adapter().index.capacity_bytes = 10 * size
    wait_until(lambda: site.held() == {4, 5, 6, 7, 8})
    assert site.adapter().usage().total_bytes_used == 5 * size


def test_tenants_are_brought_back_to_their_limits(open_site: OpenSite) -> None:
    site = open_site('{"type": "memory", "max_size_gb": 1, "eviction": {"eviction_policy": "IsolatedLRU"}}')
    for number in range(1, 7):
        site.store(number, salt="a" if number % 2 else "b")
        wait_until(lambda number=number: number in site.held())
    size = site.adapter().usage().total_bytes_used // 6
    site.limits.limits["a"] = size
    wait_until(lambda: site.held() == {2, 4, 5, 6})
    wait_until(lambda: site.limits.taken == [("memory", "a", 2)])


def test_the_scrub_finds_and_removes_what_rotted(open_site: OpenSite) -> None:
    site = open_site(MEMORY, scrub=ScrubConfig(objects_per_s=1000))
    site.store(*range(1, 6))
    wait_until(lambda: len(site.held()) == 5)
    objects = site.adapter()._objects
    objects[key(3)] = objects[key(3)][:-1] + b"?"
    wait_until(lambda: site.held() == {1, 2, 4, 5})
    wait_until(lambda: site.manager.metrics.corrupt_objects.value("memory") == 1)
    wait_until(lambda: site.manager.metrics.scrubbed.value("memory") >= 5)


def test_a_backend_that_hangs_holds_up_the_scrub_of_no_other(open_site: OpenSite) -> None:
    site = open_site(MEMORY, MEMORY, scrub=ScrubConfig(objects_per_s=1000))
    site.store(*range(1, 6))
    wait_until(lambda: len(site.held(0)) == len(site.held(1)) == 5)
    hung, go_on = threading.Event(), threading.Event()

    def hang(key: ObjectKey) -> bool:
        hung.set()
        return go_on.wait(2 * PATIENCE_S)

    site.adapter(0).verify = hang  # type: ignore[method-assign]
    try:
        assert hung.wait(PATIENCE_S)
        objects = site.adapter(1)._objects
        objects[key(3)] = objects[key(3)][:-1] + b"?"
        wait_until(lambda: site.held(1) == {1, 2, 4, 5})
    finally:
        go_on.set()


def test_selectors_take_class_name_or_type(open_site: OpenSite) -> None:
    site = open_site('{"type": "mock", "max_size_gb": 1, "mock_bandwidth_gb": 10}', MEMORY)
    find = site.manager.find_l2_adapter
    assert [find(selector).index for selector in (None, "mock", "memory", "MockL2Adapter")] == [0, 0, 1, 0]
    with pytest.raises(AdapterNotFoundError, match="no L2 adapter with type_name='fs'"):
        find("fs")


def test_reconfiguration_counts_adapters_of_one_type(open_site: OpenSite) -> None:
    site = open_site('{"type": "mock", "max_size_gb": 1}', MEMORY, MEMORY)
    assert site.manager.reconfigurable_backends() == ["memory", "mock"]
    entries = site.manager.reconfigure_status("memory")
    assert [(entry["adapter_index"], entry["l2_adapter_index"]) for entry in entries] == [(0, 1), (1, 2)]
    result = site.manager.reconfigure_l2_adapter("memory", "resize", 1, {"size": "2GiB"})
    assert (result["adapter_index"], result["new_size_bytes"]) == (1, 2 * GIB)
    assert site.adapter(2).index.capacity_bytes == 2 * GIB
    assert site.adapter(1).index.capacity_bytes == GIB
    with pytest.raises(AdapterNotFoundError, match="memory adapter not found"):
        site.manager.reconfigure_l2_adapter("memory", "resize", 2, {"size": 1})


def test_a_close_hands_over_what_waits(open_site: OpenSite) -> None:
    site = open_site('{"type": "memory", "max_size_gb": 1, "mock_bandwidth_gb": 0.0001}')
    adapter = site.adapter()
    site.store(*range(1, 30))
    kept: list[int] = []
    close = adapter.close

    def closing() -> None:
        kept.append(adapter.num_objects)
        close()

    adapter.close = closing  # type: ignore[method-assign]
    assert site.manager.close()
    assert kept == [29]


def test_bad_settings_name_the_position() -> None:
    with pytest.raises(ConfigError, match="--l2-adapter #2: unknown type 'tape'; known types: "):
        parse_adapters([MEMORY, '{"type": "tape"}'])


def test_a_store_of_what_is_held_is_no_second_copy(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    source = Source(memoryview(b"x" * OBJECT_BYTES))
    assert site.adapter().store(key(1), source) is StoreStatus.STORED
    assert site.adapter().store(key(1), source) is StoreStatus.EXISTS
    used = site.adapter().usage().total_bytes_used
    site.store(1)
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert site.adapter().usage().total_bytes_used == used
