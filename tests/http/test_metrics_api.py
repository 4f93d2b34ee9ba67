"""GET /metrics: ours among what the process has, in a form that Prometheus' own parser reads."""

from __future__ import annotations

import time

import httpx
import zmq
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import RunningServer


def samples(http: httpx.Client) -> dict[str, float]:
    """Value by name and labels, of samples that have no other labels than shown."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_gauges_and_process_metrics_are_there(http: httpx.Client) -> None:
    found = samples(http)
    assert found["lmcache_mp_l1_memory_usage_bytes{}"] == 0
    assert found["lmcache_mp_l1_usage_ratio{}"] == 0
    assert found["process_resident_memory_bytes{}"] > 0


def test_counters_follow_what_happens(http: httpx.Client, server: RunningServer) -> None:
    name = "lmcache_mp_bad_requests_total{code=bad_frame}"
    before = samples(http).get(name, 0)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(server.zmq_url)
        for _ in range(3):
            socket.send(b"not one of ours")
            assert socket.poll(5000)
            socket.recv()
    assert samples(http)[name] == before + 3


def test_eviction_loop_counts_its_cycles(http: httpx.Client) -> None:
    name = "lmcache_mp_l1_eviction_loop_ticks_total{}"
    before, deadline = samples(http).get(name, 0), time.monotonic() + 20
    while samples(http).get(name, 0) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
