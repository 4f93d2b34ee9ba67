"""Gauges over a real engine and its tiers."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.metric_sources import watch_engine
from lmcache.embedded.metric_tiers import watch_tier
from lmcache.embedded.metrics import EmbeddedMetrics
from tests.embedded.site import PATIENCE_S, Site, backend, config_of, opened
from tests.embedded.test_metrics import make, shown


@pytest.fixture
def site(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Site]:
    tiers = (
        backend("LocalDiskBackend", type="fs", base_path=str(tmp_path / "disk")),
        backend("RemoteBackend-fs", type="fs", base_path=str(tmp_path / "remote")),
        backend("RemoteBackend", type="fs", base_path=str(tmp_path / "more")),
    )
    with opened(pool_folder, config_of(backends=tiers)) as site:
        yield site


def watched(site: Site) -> EmbeddedMetrics:
    metrics = make()
    watch_engine(metrics, lambda: site.engine)
    return metrics


def test_usage_is_told_by_kind_of_backend(site: Site) -> None:
    metrics = watched(site)
    assert shown(metrics)["local_cache_usage"] == 0
    site.store("abc")
    site.wait_until_stored()
    found, used = shown(metrics), site.engine.usage()
    assert found["local_cache_usage"] == used["LocalCPUBackend"] == 3 * site.engine.chunk_bytes
    assert found["local_storage_usage"] == used["LocalDiskBackend"] > 0
    assert found["remote_cache_usage"] == used["RemoteBackend-fs"] + used["RemoteBackend"]
    assert found["remote_put_task_num"] == 0
    assert found["lmcache_is_healthy"] == 1
    assert (found["put_failed_count"], found["get_blocking_failed_count"]) == (0, 0)
    assert found["storage_events_ongoing_count"] == 0


def test_objects_and_locks_are_counted(site: Site) -> None:
    metrics = watched(site)
    site.store("abc")
    site.lookup("ab", lookup_id="one")
    site.lookup("b", lookup_id="two")
    found = shown(metrics)
    assert found["active_memory_objs_count"] == 3
    assert found["local_cpu_hot_cache_count"] == 3
    assert found["local_cpu_keys_in_request_count"] == 2
    assert found["pinned_memory_objs_count"] >= 2  # and what tiers still read
    site.engine.release(("one", "two"))
    site.wait_until_stored()
    found = shown(metrics)
    assert found["local_cpu_keys_in_request_count"] == 0
    assert (found["pinned_memory_objs_count"], found["pin_monitor_pinned_objects_count"]) == (0, 0)


def test_what_tiers_failed_at_is_summed_up(site: Site) -> None:
    metrics, storage = watched(site), site.engine.storage.metrics
    storage.store_dropped.add(2, "fs", "full")
    storage.store_dropped.add(1, "fs", "failed")
    storage.prefetch_failure.add(1, "not_found", "model")
    found = shown(metrics)
    assert (found["put_failed_count"], found["get_blocking_failed_count"]) == (3, 1)


def test_series_are_absent_without_an_engine() -> None:
    metrics = make()
    engine: EmbeddedEngine | None = None
    watch_engine(metrics, lambda: engine)
    assert "local_cache_usage" not in shown(metrics)


def test_a_tier_tells_what_came_and_went(site: Site) -> None:
    metrics = make()
    for name, tier in zip(("LocalDiskBackend", "RemoteBackend-fs"), site.engine.storage.tiers(), strict=False):
        watch_tier(metrics, name, tier)
    site.store("abc")
    site.wait_until_stored()
    num_bytes = 3 * site.engine.chunk_bytes
    found = shown(metrics)
    assert (found["num_remote_write_requests_total"], found["num_remote_write_bytes_total"]) == (3, num_bytes)
    assert found["remote_time_to_put_count"] == 3
    for name in ("LocalDiskBackend", "RemoteBackend"):
        site.engine.close_backend(name)
    site.engine.clear(("LocalCPUBackend",))
    assert site.lookup("abc", wait_s=PATIENCE_S) == 3
    found = shown(metrics)
    assert (found["num_remote_read_requests_total"], found["num_remote_read_bytes_total"]) == (3, num_bytes)
    assert found["remote_time_to_get_count"] == 3
