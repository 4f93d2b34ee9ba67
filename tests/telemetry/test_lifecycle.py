"""Histograms over chunks' lives: what each observes, and that the sample is all or nothing."""

from __future__ import annotations

import pytest

from lmcache.telemetry.lifecycle import ChunkLifecycle
from lmcache.telemetry.metrics import Distribution, Histogram, MetricRegistry
from tests.conftest import FakeClock

A, B = b"\x01" * 32, b"\x02" * 32


def sums(metrics: MetricRegistry, *labels: str) -> dict[str, tuple[int, float]]:
    """Count and sum of every histogram that saw something, by its short name."""
    found = {}
    for name, histogram in metrics.instruments.items():
        assert isinstance(histogram, Histogram)
        seen: Distribution | None = histogram.values().get(labels if histogram.label_names else ())
        if seen is not None:
            found[name.removeprefix("lmcache_mp_")] = (sum(seen.counts), seen.total)
    return found


def test_a_chunks_life(clock: FakeClock) -> None:
    metrics = MetricRegistry()
    lives = ChunkLifecycle(metrics, 1.0, clock)
    lives.stored(A, "u")
    clock.advance(10)
    lives.read([A, B], "u")
    clock.advance(5)
    lives.read([A], "u")
    clock.advance(2)
    lives.removed(A, "u")
    lives.removed(A, "u")
    assert sums(metrics, "u") == {
        "l1_chunk_reuse_gap_seconds": (2, 15.0),
        "real_reuse_gap_seconds": (2, 15.0),
        "real_reuse_gap_objects": (1, 1.0),
        "l1_chunk_lifetime_seconds": (1, 17.0),
        "l1_chunk_idle_before_evict_seconds": (1, 2.0),
    }
    clock.advance(1000)
    lives.stored(A, "u")
    assert sums(metrics, "u")["l1_chunk_evict_reuse_gap_seconds"] == (1, 300.0)


def test_tenants_are_kept_apart(clock: FakeClock) -> None:
    metrics = MetricRegistry()
    lives = ChunkLifecycle(metrics, 1.0, clock)
    lives.stored(A, "u")
    clock.advance(1)
    lives.read([A], "other")
    assert sums(metrics, "other") == {}


@pytest.mark.parametrize(("rate", "num_seen"), [(0.0, 0), (0.25, 64), (1.0, 256)])
def test_the_sample_is_chosen_by_the_digest(clock: FakeClock, rate: float, num_seen: int) -> None:
    metrics = MetricRegistry()
    lives = ChunkLifecycle(metrics, rate, clock)
    digests = [b"\0" * 31 + bytes([number]) for number in range(256)]
    for digest in digests:
        lives.stored(digest, "")
        lives.removed(digest, "")
    assert sums(metrics).get("l1_chunk_lifetime_seconds", (0, 0))[0] == num_seen
