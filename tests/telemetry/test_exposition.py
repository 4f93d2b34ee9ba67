"""Our instruments as Prometheus shows them: names, labels, and agreement with its own parser."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from lmcache.telemetry.exposition import MetricsCollector
from lmcache.telemetry.metrics import CHILDREN_MAX, OTHER, MetricRegistry


@pytest.fixture
def metrics() -> MetricRegistry:
    return MetricRegistry()


def shown(metrics: MetricRegistry) -> list[Sample]:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(MetricsCollector(metrics))
    text = generate_latest(registry).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def test_counter_has_one_suffix(metrics: MetricRegistry) -> None:
    metrics.counter("lmcache_mp_things_chunks", "Things").add(2)
    metrics.counter("lmcache_mp_dropped_events_total", "Dropped").add(3)
    assert [(sample.name, sample.value) for sample in shown(metrics)] == [
        ("lmcache_mp_things_chunks_total", 2),
        ("lmcache_mp_dropped_events_total", 3),
    ]


def test_empty_salt_is_no_label_and_others_are(metrics: MetricRegistry) -> None:
    counter = metrics.counter("lmcache_mp_lookup_hit_tokens", "Tokens", "model_name", "cache_salt")
    counter.add(256, "m", "")
    counter.add(512, "m", "alice")
    counter.add(1, "", "")
    assert {tuple(sorted(sample.labels.items())): sample.value for sample in shown(metrics)} == {
        (("model_name", "m"),): 256,
        (("cache_salt", "alice"), ("model_name", "m")): 512,
        (("model_name", ""),): 1,
    }


def test_label_values_are_escaped(metrics: MetricRegistry) -> None:
    value = 'a "quoted" \\ value\nof two lines'
    metrics.counter("lmcache_mp_odd", "Odd", "model_name").add(1, value)
    assert shown(metrics)[0].labels == {"model_name": value}


def test_gauge_is_read_when_asked_and_not_when_registered(metrics: MetricRegistry) -> None:
    reads = []

    def read() -> dict[tuple[str, ...], float]:
        reads.append(1)
        return {("active",): 7.0}

    metrics.gauge("lmcache_mp_l2_adapters", "Adapters", read, "state")
    registry = CollectorRegistry(auto_describe=True)
    registry.register(MetricsCollector(metrics))
    assert not reads
    assert b'lmcache_mp_l2_adapters{state="active"} 7.0' in generate_latest(registry)
    assert len(reads) == 1


def test_histogram_buckets_are_cumulative(metrics: MetricRegistry) -> None:
    histogram = metrics.histogram("lmcache_mp_load_seconds", "Loads", "l2_name", buckets=(1, 10))
    for value in (0.5, 1, 5, 100):
        histogram.observe(value, "fs")
    found = shown(metrics)
    buckets = {sample.labels["le"]: sample.value for sample in found if sample.name.endswith("_bucket")}
    assert buckets == {"1.0": 2, "10.0": 3, "+Inf": 4}
    assert [(sample.name, sample.value) for sample in found[3:]] == [
        ("lmcache_mp_load_seconds_count", 4),
        ("lmcache_mp_load_seconds_sum", 106.5),
    ]


def test_series_are_bounded_whatever_the_labels(metrics: MetricRegistry) -> None:
    counter = metrics.counter("lmcache_mp_things", "Things", "model_name", "cache_salt")
    histogram = metrics.histogram("lmcache_mp_gap_seconds", "Gaps", "cache_salt")
    for number in range(CHILDREN_MAX + 50):
        counter.add(1, "m", f"tenant-{number}")
        histogram.observe(1, f"tenant-{number}")
    assert (len(counter.values()), counter.value(OTHER, OTHER)) == (CHILDREN_MAX + 1, 50)
    distributions = histogram.values()
    assert (len(distributions), sum(distributions[OTHER,].counts)) == (CHILDREN_MAX + 1, 50)


def test_reset_keeps_the_series_at_0(metrics: MetricRegistry) -> None:
    metrics.counter("lmcache_mp_things", "Things", "reason").add(5, "x")
    metrics.reset()
    assert [(sample.labels, sample.value) for sample in shown(metrics)] == [({"reason": "x"}, 0)]
