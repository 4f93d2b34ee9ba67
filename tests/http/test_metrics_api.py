"""GET /metrics: ours among what the process has, in a form that Prometheus' own parser reads; and the reset."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import httpx
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from lmcache.telemetry.metrics import MetricRegistry
from lmcache.v1.internal_api_server.rendering import CachedRendering
from tests.conftest import FakeClock
from tests.http.in_process import ask, common_app
from tests.server.running import RunningServer

_SOON_S = 30.0
_BAD_FRAMES = "lmcache_mp_bad_requests_total{code=bad_frame}"


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


def test_who_is_asked_is_told(http: httpx.Client) -> None:
    identity = http.get("/conf").json()["mp"]["instance_id"]
    assert samples(http)[f"target_info{{service_instance_id={identity}}}"] == 1


def wait_for(http: httpx.Client, is_so: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """What is shown may be a second old."""
    deadline = time.monotonic() + _SOON_S
    while not is_so(found := samples(http)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def send_bad_frames(server: RunningServer, num: int) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(server.zmq_url)
        for _ in range(num):
            socket.send(b"not one of ours")
            assert socket.poll(30_000)
            socket.recv()


def test_counters_follow_what_happens(http: httpx.Client, server: RunningServer) -> None:
    before = samples(http).get(_BAD_FRAMES, 0)
    send_bad_frames(server, 3)
    wait_for(http, lambda found: found.get(_BAD_FRAMES) == before + 3)


def test_eviction_loop_counts_its_cycles(http: httpx.Client) -> None:
    name = "lmcache_mp_l1_eviction_loop_ticks_total{}"
    before = samples(http).get(name, 0)
    wait_for(http, lambda found: found.get(name, 0) > before)


def test_reset_is_seen_by_the_next_question(http: httpx.Client, server: RunningServer) -> None:
    send_bad_frames(server, 2)
    before = wait_for(http, lambda found: found.get(_BAD_FRAMES, 0) >= 2)
    memory = "process_resident_memory_bytes{}"
    answer = http.post("/metrics/reset")
    assert (answer.status_code, answer.text) == (200, "ok")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    found = samples(http)
    assert found[_BAD_FRAMES] == 0
    assert found[memory] > 0
    assert set(before) <= set(found)
    send_bad_frames(server, 1)
    wait_for(http, lambda found: found.get(_BAD_FRAMES) == 1)


def test_reset_concerns_counters_and_histograms_and_no_gauge() -> None:
    registry = MetricRegistry()
    registry.counter("c", "Counter", "salt").add(5, "alice")
    registry.histogram("h", "Histogram", "salt").observe(3, "alice")
    gauge = registry.gauge("g", "Gauge", lambda: {(): 7.0})
    assert ask(common_app("metrics_api", metrics=registry), "POST", "/metrics/reset").text == "ok"
    counter, histogram = registry.instruments["c"], registry.instruments["h"]
    assert counter.values() == {("alice",): 0}  # type: ignore[union-attr]
    distribution = histogram.values()[("alice",)]  # type: ignore[union-attr]
    assert (sum(distribution.counts), distribution.total) == (0, 0)
    assert gauge.read() == {(): 7.0}


class _Renderer:
    """Numbers its renderings, and can be held up."""

    def __init__(self) -> None:
        self.num = 0
        self.begun = threading.Semaphore(0)
        self.let = threading.Event()
        self.let.set()
        self._running = threading.Lock()

    def __call__(self) -> bytes:
        assert self._running.acquire(blocking=False), "two renderings at once"
        try:
            self.num += 1
            text = str(self.num).encode()
            self.begun.release()
            assert self.let.wait(_SOON_S)
            return text
        finally:
            self._running.release()


def test_rendered_at_most_once_a_second(clock: FakeClock) -> None:
    async def run() -> None:
        rendering = CachedRendering(_Renderer(), clock)
        assert await rendering.text() == b"1"
        clock.advance(0.99)
        assert await rendering.text() == b"1"
        clock.advance(0.02)
        assert await rendering.text() == b"2"
        rendering.invalidate()
        assert await rendering.text() == b"3"

    asyncio.run(run())


def test_those_who_wait_share_one_rendering(clock: FakeClock) -> None:
    async def run() -> None:
        renderer = _Renderer()
        renderer.let.clear()
        rendering = CachedRendering(renderer, clock)
        waiting = [asyncio.create_task(rendering.text()) for _ in range(20)]
        await asyncio.to_thread(renderer.begun.acquire)
        clock.advance(100)
        await asyncio.sleep(0)  # the event loop is free meanwhile
        renderer.let.set()
        assert set(await asyncio.gather(*waiting)) == {b"1"}

    asyncio.run(run())


def test_reset_during_a_rendering_voids_it(clock: FakeClock) -> None:
    async def run() -> None:
        renderer = _Renderer()
        renderer.let.clear()
        rendering = CachedRendering(renderer, clock)
        before = asyncio.create_task(rendering.text())
        await asyncio.to_thread(renderer.begun.acquire)
        rendering.invalidate()
        after = asyncio.create_task(rendering.text())
        await asyncio.sleep(0)
        renderer.let.set()
        assert await after == b"2"
        assert await before in (b"1", b"2")

    asyncio.run(run())


def test_failed_rendering_is_tried_again(clock: FakeClock) -> None:
    failures = [ValueError("gauge")]

    def render() -> bytes:
        if failures:
            raise failures.pop()
        return b"text"

    async def run() -> None:
        rendering = CachedRendering(render, clock)
        with pytest.raises(ValueError, match="gauge"):
            await rendering.text()
        assert await rendering.text() == b"text"

    asyncio.run(run())
