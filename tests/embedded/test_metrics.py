"""What the in-process mode counts, as Prometheus shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lmcache.embedded.metric_names import COUNTERS, GAUGES, HISTOGRAMS, PREFIX
from lmcache.embedded.metric_sources import watch_statistics, watch_threads
from lmcache.embedded.metrics import EmbeddedMetrics, RecentShare
from lmcache.errors import ConfigError
from lmcache.telemetry.exposition import MetricsCollector
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel

LABELS = {"model_name": "org/model", "worker_id": "3", "role": "worker", "served_model_name": "served"}


def make(extra_config: Mapping[str, object] | None = None) -> EmbeddedMetrics:
    return EmbeddedMetrics("org/model", "served", "worker", 3, extra_config)


def shown(metrics: EmbeddedMetrics) -> dict[str, float]:
    """Values by name without the prefix, and with the bucket's bound where there is one."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(MetricsCollector(metrics.registry))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            bound = labels.pop("le", None)
            assert labels == LABELS
            name = sample.name.removeprefix(PREFIX)
            found[name if bound is None else f"{name} {bound}"] = sample.value
    return found


def bounds(metrics: EmbeddedMetrics, name: str) -> list[str]:
    return [each.rsplit(" ", 1)[1] for each in shown(metrics) if each.startswith(f"{name}_bucket ")]


def test_counters_are_there_from_the_start() -> None:
    found = shown(make())
    assert found == dict.fromkeys((f"{name}_total" for name in COUNTERS), 0)


def test_every_name_carries_the_prefix() -> None:
    metrics = make()
    for name in GAUGES:
        metrics.watch(name, lambda: 1)
    expected = {PREFIX + name for name in (*COUNTERS, *GAUGES, *HISTOGRAMS)}
    assert set(metrics.registry.instruments) == expected


def test_lookups_are_counted_in_tokens() -> None:
    metrics = make()
    metrics.looked_up(512, 256, 0.001)
    metrics.looked_up(512, 0, 0.001)
    metrics.prompt_seen(600, 64)
    found = shown(metrics)
    assert found["num_lookup_requests_total"] == 2
    assert found["num_lookup_tokens_total"] == 1024
    assert found["num_lookup_hits_total"] == 256
    assert found["lookup_0_hit_requests_total"] == 1
    assert found["lookup_hit_rate"] == 0.25
    assert found["request_cache_hit_rate_count"] == 2
    assert found["request_cache_hit_rate_bucket 0.0"] == 1
    assert found["num_prompt_tokens_total"] == 600
    assert found["num_vllm_hit_tokens_total"] == 64
    assert found["time_to_lookup_count"] == 2


def test_transfers_are_counted_with_their_speed() -> None:
    metrics = make()
    metrics.retrieved(256, 256, 0.02)
    metrics.retrieved(256, 0, 0.001)
    metrics.stored(512, 0.5)
    metrics.stored(0, 0.001)
    found = shown(metrics)
    assert found["num_retrieve_requests_total"] == 2
    assert found["num_requested_tokens_total"] == 512
    assert found["num_hit_tokens_total"] == 256
    assert found["retrieve_hit_rate"] == 0.5
    assert (found["retrieve_speed_count"], found["retrieve_speed_sum"]) == (1, 12800)
    assert found["num_store_requests_total"] == 2
    assert found["num_stored_tokens_total"] == 512
    assert (found["store_speed_count"], found["store_speed_sum"]) == (1, 1024)
    assert found["time_to_retrieve_bucket 0.02"] == 2
    assert found["time_to_retrieve_bucket 0.01"] == 1


def test_tiers_and_room_are_counted() -> None:
    metrics = make()
    metrics.remote_read(1000, 0.25)
    metrics.remote_written(500, 0.5)
    metrics.made_room(3, 0)
    metrics.made_room(0, 2)
    metrics.unpinned(4)
    found = shown(metrics)
    assert (found["num_remote_read_requests_total"], found["num_remote_read_bytes_total"]) == (1, 1000)
    assert (found["num_remote_write_requests_total"], found["num_remote_write_bytes_total"]) == (1, 500)
    assert found["remote_time_to_get_sum"] == 250
    assert found["remote_time_to_put_sum"] == 500
    assert found["local_cpu_evict_count_total"] == 1
    assert found["local_cpu_evict_keys_count_total"] == 3
    assert found["local_cpu_evict_failed_count_total"] == 2
    assert found["forced_unpin_count_total"] == 4


def test_steps_have_times_of_their_own() -> None:
    metrics = make()
    metrics.scattered(1e-5)
    metrics.gathered(2e-5)
    metrics.handed_on(1)
    found = shown(metrics)
    assert found["retrieve_to_gpu_time_bucket 1e-05"] == 1
    assert found["store_from_gpu_time_bucket 1e-05"] == 0
    assert found["store_from_gpu_time_bucket 2e-05"] == 1
    assert found["store_put_time_sum"] == 1


def test_buckets_are_the_documented_ones() -> None:
    metrics = make()
    metrics.retrieved(1, 1, 1)
    metrics.handed_on(1)
    assert bounds(metrics, "time_to_retrieve") == [
        *("0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25"),
        *("0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf"),
    ]
    steps = bounds(metrics, "store_put_time")
    assert (steps[0], steps[19], len(steps)) == ("1e-05", "5.24288", 21)
    speeds = bounds(metrics, "retrieve_speed")
    assert speeds[:4] == ["1.0", "8.0", "16.0", "32.0"]
    assert speeds[-2:] == ["65536.0", "+Inf"]


@pytest.mark.parametrize("given", [[1, 2.5], "1, 2.5", (1, "2.5")])
def test_buckets_can_be_chosen(given: object) -> None:
    metrics = make({"histogram_bucket_time_to_store": given, "some_plugin": 1})
    metrics.stored(1, 2)
    assert bounds(metrics, "time_to_store") == ["1.0", "2.5", "+Inf"]


@pytest.mark.parametrize(
    "given", ["", "a,b", [], [2, 1], [1, 1], [True], ["inf"], ["nan"], [None], {}, 5, None, [1] * 101, [10**400]]
)
def test_buckets_that_are_none_are_named(given: object) -> None:
    with pytest.raises(ConfigError, match="extra_config histogram_bucket_time_to_store must be"):
        make({"histogram_bucket_time_to_store": given})


def test_an_unknown_histogram_is_told(caplog: pytest.LogCaptureFixture) -> None:
    make({"histogram_bucket_time_to_fly": [1]})
    assert "histogram_bucket_time_to_fly has no effect" in caplog.text


def test_reset_leaves_gauges_and_keeps_series() -> None:
    metrics = make()
    metrics.looked_up(512, 256, 0.001)
    metrics.watch("local_cache_usage", lambda: 7)
    metrics.registry.reset()
    found = shown(metrics)
    assert found["num_lookup_tokens_total"] == 0
    assert found["time_to_lookup_count"] == 0
    assert found["time_to_lookup_sum"] == 0
    assert found["lookup_hit_rate"] == 0.5
    assert found["local_cache_usage"] == 7


def test_gauges_follow_who_was_named_last() -> None:
    metrics = make()
    metrics.watch("connector_kv_caches_count", lambda: 1)
    metrics.watch("connector_kv_caches_count", lambda: None)
    assert "connector_kv_caches_count" not in shown(metrics)
    metrics.watch("connector_kv_caches_count", lambda: 3)
    assert shown(metrics)["connector_kv_caches_count"] == 3


def test_an_undocumented_gauge_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        make().watch("connector_dreams_count", lambda: 1)


def test_recent_share_forgets() -> None:
    recent = RecentShare(num_requests=2)
    assert recent.share() is None
    for asked, got in ((100, 0), (30, 30), (10, 0)):
        recent.add(asked, got)
    assert recent.share() == 0.75


def test_parts_come_and_go() -> None:
    metrics, part = make(), MetricRegistry()
    reads = part.counter("lmcache_mp_reads", "Reads")
    detach = metrics.registry.attach(part)
    assert part.instruments["lmcache_mp_reads"] in metrics.registry.all()
    reads.add(2)
    metrics.registry.reset()
    assert reads.value() == 0
    detach()
    detach()
    assert reads not in metrics.registry.all()


def test_a_name_is_shown_once() -> None:
    metrics, parts = MetricRegistry(), (MetricRegistry(), MetricRegistry())
    counters = [part.counter("lmcache_mp_reads", "Reads") for part in parts]
    for part in parts:
        metrics.attach(part)
    assert metrics.all() == counters[:1]


def test_threads_are_counted_by_level() -> None:
    metrics, threads = make(), PeriodicThreadRegistry()
    watch_threads(metrics, threads)
    threads.start(PeriodicThread("lmcache-test-low", ThreadLevel.LOW, 60.0, dict))
    try:
        found = shown(metrics)
    finally:
        threads.stop_all()
    assert found["periodic_threads_total_count"] == 1
    assert found["periodic_threads_running_count"] == 1
    assert found["periodic_threads_low_active"] == 1
    assert found["periodic_threads_critical_total"] == 0
    assert shown(metrics)["periodic_threads_total_count"] == 0


def test_statistics_are_told_as_far_as_there_are_any() -> None:
    metrics = make()
    status: dict[str, Any] | None = None
    watch_statistics(metrics, lambda: status)
    assert not [name for name in shown(metrics) if name.startswith("chunk_statistics")]
    status = {"enabled": True, "total_chunks": 8, "reuse_rate": 0.25, "bloom_filter": {"size_mb": 1.5}}
    found = {name: value for name, value in shown(metrics).items() if name.startswith("chunk_statistics")}
    assert found == {
        "chunk_statistics_enabled": 1,
        "chunk_statistics_total_chunks": 8,
        "chunk_statistics_reuse_rate": 0.25,
        "chunk_statistics_bloom_filter_size_mb": 1.5,
    }
