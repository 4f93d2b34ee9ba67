"""Quotas in the engine's loop: within a cycle, only the excess, said once, and over a restart."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.pool import PoolConfig
from lmcache.memory.pool_files import Geometry
from lmcache.telemetry.metrics import MetricRegistry
from tests.conftest import FakeClock
from tests.engine.conftest import CHUNK_SIZE, DIGESTS, UNIT_BYTES, Harness
from tests.engine.tiered import tiered_engines, wait_until

OpenEngine = Callable[..., Harness]


@pytest.fixture
def open_engine(pool_folder: pathlib.Path, tmp_path: pathlib.Path, clock: FakeClock) -> Iterator[OpenEngine]:
    """`open_engine(policy="IsolatedLRU", default_units=0)`, with a file of quotas; joined by one engine."""
    opened: list[Harness] = []

    def open_one(policy: str = "IsolatedLRU", default_units: int = 0, keep: bool = False) -> Harness:
        config = EngineConfig(
            PoolConfig(pool_folder, Geometry(16 * UNIT_BYTES, 64), eviction_policy=policy, keep=keep),
            chunk_size=CHUNK_SIZE,
            default_quota_bytes=default_units * UNIT_BYTES,
            quota_file=tmp_path / "quotas.json",
        )
        harness = Harness(MPCacheServer(config, MetricRegistry(), lambda peer, message: None, clock), clock)
        harness.engine.pool.wait_until_populated(30)
        opened.append(harness)
        harness.worker()
        harness.scheduler()
        return harness

    yield open_one
    for harness in opened:
        harness.engine.close()


def usage(harness: Harness) -> dict[str, int]:
    harness.engine.pool.l1.check_integrity()
    return {salt: used // UNIT_BYTES for salt, used in harness.engine.pool.l1.usage_bytes_by_salt().items()}


def test_a_cycle_takes_the_excess_from_a_prompts_tail_and_leaves_others_alone(open_engine: OpenEngine) -> None:
    harness = open_engine()
    harness.engine.quotas.set("a", 3 * UNIT_BYTES)
    harness.engine.quotas.set("b", 8 * UNIT_BYTES)
    harness.store(DIGESTS[:5], salt="a")
    harness.store(DIGESTS[:8], salt="b")
    assert usage(harness) == {"a": 5, "b": 8}, "limits are soft"
    assert harness.engine.evict_cycle()["beyond_quota"] == 2
    assert usage(harness) == {"a": 3, "b": 8}
    assert harness.lookup(DIGESTS[:5], salt="a").num_chunks == 3
    assert harness.engine.evict_cycle()["beyond_quota"] == 0
    assert harness.engine.metrics.l1_evicted.value("a") == 2


def test_a_lower_limit_counts_from_the_next_cycle_on(open_engine: OpenEngine) -> None:
    harness = open_engine()
    harness.engine.quotas.set("a", 8 * UNIT_BYTES)
    harness.store(DIGESTS[:6], salt="a")
    harness.engine.evict_cycle()
    harness.engine.quotas.set("a", UNIT_BYTES)
    harness.engine.evict_cycle()
    assert usage(harness) == {"a": 1}


def test_locked_objects_stay_until_they_are_unlocked(open_engine: OpenEngine) -> None:
    harness = open_engine()
    harness.store(DIGESTS[:4], salt="a")
    harness.lookup(DIGESTS[:2], request="r", salt="a")
    harness.engine.evict_cycle()
    assert usage(harness) == {"a": 2}
    harness.end("r")
    harness.engine.evict_cycle()
    assert usage(harness) == {}


def test_the_wipe_of_an_unregistered_tenant_is_said_once_and_counted(
    open_engine: OpenEngine, caplog: pytest.LogCaptureFixture
) -> None:
    harness = open_engine()
    harness.engine.quotas.set("zero", 0)
    for _ in range(2):
        for salt in ("", "stranger", "zero"):
            harness.store(DIGESTS[:3], salt=salt)
        harness.engine.evict_cycle()
        assert usage(harness) == {}
    lines = [record.getMessage() for record in caplog.records if "has no quota" in record.getMessage()]
    assert [line.split(" has no quota")[0] for line in lines] == [
        "tenant _default (requests without a cache_salt)",
        "tenant stranger",
    ]
    registry = harness.engine.metrics.registry
    wiped = {
        counter.name: counter.values() for counter in registry.instruments.values() if "quota_wiped" in counter.name
    }
    assert wiped == {
        "lmcache_mp_quota_wiped_chunks": {("",): 6, ("stranger",): 6},
        "lmcache_mp_quota_wiped_bytes": {("",): 6 * UNIT_BYTES, ("stranger",): 6 * UNIT_BYTES},
    }


def test_a_default_quota_gives_unknown_tenants_room(open_engine: OpenEngine, caplog: pytest.LogCaptureFixture) -> None:
    harness = open_engine(default_units=2)
    harness.store(DIGESTS[:3], salt="stranger")
    harness.engine.evict_cycle()
    assert usage(harness) == {"stranger": 2}
    assert "has no quota" not in caplog.text


def test_without_a_policy_that_tells_tenants_apart_quotas_touch_nothing(open_engine: OpenEngine) -> None:
    harness = open_engine(policy="LRU")
    harness.store(DIGESTS[:5], salt="a")
    assert harness.engine.evict_cycle()["beyond_quota"] == 0
    assert usage(harness) == {"a": 5}


def test_quotas_and_what_they_protect_survive_a_restart(open_engine: OpenEngine) -> None:
    first = open_engine(keep=True)
    first.engine.quotas.set("a", 4 * UNIT_BYTES)
    first.store(DIGESTS[:6], salt="a")
    first.engine.close()
    second = open_engine()
    assert second.engine.quotas.list() == {"a": 4 * UNIT_BYTES}
    second.engine.evict_cycle()
    assert usage(second) == {"a": 4}


def test_a_pool_that_was_made_anew_keeps_to_the_same_quotas(open_engine: OpenEngine) -> None:
    harness = open_engine()
    shutil.rmtree(harness.engine.pool.files.folder)
    harness.engine.reap_cycle()
    harness.engine.pool.wait_until_populated(30)
    assert harness.engine.pool.quotas is harness.engine.quotas


def test_a_limit_holds_over_all_tiers_that_evict_by_it(pool_folder: pathlib.Path) -> None:
    """What is shown is what is enforced: L1 and an adapter together, whoever holds most first."""
    isolated = '{"type": "memory", "max_size_gb": 1, "eviction": {"eviction_policy": "IsolatedLRU"}}'
    digests = [bytes([number]) * 32 for number in range(1, 7)]
    with tiered_engines(pool_folder) as open_tiered:
        tiered = open_tiered(isolated, policy="IsolatedLRU")
        engine = tiered.engine
        tiered.write(digests, salt="u")
        tiered.wait_until_stored(6)
        assert engine.usage.bytes_by_salt()["u"] > 12 * UNIT_BYTES
        limit_bytes = 7 * UNIT_BYTES
        engine.quotas.set("u", limit_bytes)

        def is_kept() -> bool:
            engine.evict_cycle()
            return engine.usage.bytes_by_salt()["u"] <= limit_bytes

        wait_until(is_kept)
        in_l1 = engine.pool.l1.usage_bytes_by_salt()["u"] // UNIT_BYTES
        assert (in_l1, engine.storage.tiers()[0].adapter.num_objects) == (3, 3)
