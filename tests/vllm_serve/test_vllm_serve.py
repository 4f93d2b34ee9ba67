"""`vllm serve` as users run it, a second vLLM process beside it, and what becomes of that one's death."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec
from tests.server.running import RunningServer
from tests.vllm_serve.conftest import CHUNK
from tests.vllm_serve.serving import (
    VllmServe,
    handicapped,
    kill_all,
    l1_status,
    metric,
    num_clients,
    process_tree_killed,
    random_prompt,
    wait_until,
    wait_until_it_saves,
    worker_ids,
)

_SECONDS_PER_CHUNK = 0.5


@pytest.fixture(scope="module")
def vllm(model: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any]) -> Iterator[VllmServe]:
    serving = VllmServe(model, connector)
    try:
        serving.wait_until_up()
        wait_until(lambda: num_clients(cache_server) == 2, "scheduler and worker are registered")
        yield serving
    finally:
        serving.close()


@pytest.fixture(scope="module")
def slow_engine(
    model: pathlib.Path, vllm: VllmServe, cache_server: RunningServer, connector: dict[str, Any]
) -> Iterator[EngineProcess]:
    """A second vLLM, whose saves take their time."""
    slow = handicapped(connector, seconds_per_chunk=_SECONDS_PER_CHUNK)
    process = EngineProcess(EngineSpec(model, connector=slow, options={"max_model_len": 2048}, multiprocess=True))
    assert process.process.pid is not None
    with process_tree_killed(process.process.pid):
        wait_until(lambda: num_clients(cache_server) == 4, "both engines are registered")
        wait_until_it_saves(process, cache_server)
        yield process


def test_second_completion_is_a_hit(vllm: VllmServe, cache_server: RunningServer) -> None:
    prompt = random_prompt("completion", 3 * CHUNK + 100)
    cold, num_cached = vllm.complete(prompt)
    assert num_cached == 0
    wait_until(lambda: l1_status(cache_server)["total_object_count"] == 3, "three chunks are stored")
    vllm.forget()

    hit, num_cached = vllm.complete(prompt)

    assert num_cached == 3 * CHUNK
    assert len(hit) == len(cold)
    vllm.forget()
    assert vllm.complete(prompt)[0] == hit


def test_figures_on_both_sides(vllm: VllmServe, cache_server: RunningServer) -> None:
    """Of the three completions of the test before, two were answered by us."""
    num_tokens, num_bytes = 2 * 3 * CHUNK, 3 * CHUNK * 2048
    assert vllm.metric("vllm:external_prefix_cache_hits_total") == num_tokens
    expected = {
        "lookups": 3, "hit_tokens": num_tokens, "loaded_tokens": num_tokens, "loads": 2, "load_bytes": 2 * num_bytes,
        "stores": 1, "stored_chunks": 3, "store_bytes": num_bytes, "failed_loads": 0, "dropped_stores": 0,
    }  # fmt: skip
    exposition = vllm.http.get("/metrics").text
    assert {name: metric(exposition, f"vllm:lmcache_{name}_total") for name in expected} == expected
    assert "vllm:lmcache_failed_loads_total{" in exposition
    assert metric(exposition, "vllm:lmcache_load_seconds_total") > 0
    ours = cache_server.http.get("/metrics").text
    assert metric(ours, "lmcache_mp_lookup_hit_tokens_total") == num_tokens
    assert metric(ours, "lmcache_mp_l1_memory_usage_bytes") == num_bytes
    assert worker_ids(cache_server) == [0]


def test_two_engines_share_their_prompts(
    vllm: VllmServe, slow_engine: EngineProcess, cache_server: RunningServer
) -> None:
    prompt = random_prompt("shared", CHUNK + 50)
    slow_engine.generate([prompt], 1)
    slow_engine.forget()
    assert worker_ids(cache_server) == [0, 1]

    hit, num_cached = vllm.complete(prompt)

    assert num_cached == CHUNK
    own = slow_engine.generate([prompt], 6)[0]
    assert (own.token_ids, own.num_cached_tokens) == (hit, CHUNK)


def test_engine_killed_while_it_saves(vllm: VllmServe, slow_engine: EngineProcess, cache_server: RunningServer) -> None:
    """What it had reserved comes back, and the engine that is left goes on as if nothing had been."""
    before = l1_status(cache_server)
    prompt = random_prompt("killed", 3 * CHUNK + 20)
    slow_engine.generate([prompt], 1)
    wait_until(lambda: l1_status(cache_server)["write_locked_count"] == 3, "three chunks are being written")
    assert slow_engine.process.pid is not None

    with process_tree_killed(slow_engine.process.pid) as processes:
        kill_all(processes)

    wait_until(lambda: num_clients(cache_server) == 2, "the dead engine is given up")
    after = l1_status(cache_server)
    same = ("total_object_count", "memory_used_bytes", "write_locked_count", "read_locked_count", "quarantined_count")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert worker_ids(cache_server) == [0]
    assert vllm.complete(prompt)[1] == 0
    wait_until(
        lambda: l1_status(cache_server)["total_object_count"] == before["total_object_count"] + 3, "it is stored again"
    )
    vllm.forget()
    assert vllm.complete(prompt)[1] == 3 * CHUNK
