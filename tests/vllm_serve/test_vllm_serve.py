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
    wait_until_it_finds,
    wait_until_it_saves,
    worker_ids,
)

_CHUNK_BYTES = CHUNK * 2048


@pytest.fixture(scope="module")
def vllm(model: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any]) -> Iterator[VllmServe]:
    serving = VllmServe(model, connector)
    try:
        serving.wait_until_up()
        wait_until(lambda: num_clients(cache_server) == 2, "scheduler and worker are registered")
        wait_until_it_finds(lambda prompt: serving.complete(prompt, 1)[1], serving.forget, cache_server)
        yield serving
    finally:
        serving.close()


@pytest.fixture(scope="module")
def hold_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """While it exists, the saves of the second vLLM stand still."""
    return tmp_path_factory.mktemp("hold") / "saves"


@pytest.fixture(scope="module")
def second_engine(
    model: pathlib.Path,
    vllm: VllmServe,
    cache_server: RunningServer,
    connector: dict[str, Any],
    hold_file: pathlib.Path,
) -> Iterator[EngineProcess]:
    held = handicapped(connector, hold_file=str(hold_file))
    process = EngineProcess(EngineSpec(model, connector=held, options={"max_model_len": 2048}, multiprocess=True))
    assert process.process.pid is not None
    with process_tree_killed(process.process.pid):
        wait_until(lambda: num_clients(cache_server) == 4, "both engines are registered")
        wait_until_it_saves(process, cache_server)
        yield process


def test_second_completion_is_a_hit(vllm: VllmServe, cache_server: RunningServer) -> None:
    prompt = random_prompt("completion", 3 * CHUNK + 100)
    num_before = l1_status(cache_server)["total_object_count"]
    cold, num_cached = vllm.complete(prompt)
    assert num_cached == 0
    vllm.forget()
    assert l1_status(cache_server)["total_object_count"] == num_before + 3

    hit, num_cached = vllm.complete(prompt)

    assert num_cached == 3 * CHUNK
    assert len(hit) == len(cold)
    vllm.forget()
    assert vllm.complete(prompt)[0] == hit


def figures(vllm: VllmServe, server: RunningServer, expected: dict[str, float]) -> dict[str, float]:
    """Of both processes, by the names that are expected."""
    text = vllm.metrics() + server.http.get("/metrics").text
    return {name: metric(text, name) for name in expected}


def test_figures_on_both_sides(vllm: VllmServe, cache_server: RunningServer) -> None:
    """Of three completions, two are answered by us."""
    num_tokens, num_bytes = 2 * 3 * CHUNK, 3 * _CHUNK_BYTES
    ours = {
        "lookups": 3, "hit_tokens": num_tokens, "loaded_tokens": num_tokens, "loads": 2, "load_bytes": 2 * num_bytes,
        "stores": 1, "stored_chunks": 3, "store_bytes": num_bytes, "failed_loads": 0, "dropped_stores": 0,
    }  # fmt: skip
    expected: dict[str, float] = {f"vllm:lmcache_{name}_total": value for name, value in ours.items()}
    expected |= {
        "vllm:external_prefix_cache_hits_total": num_tokens,
        "lmcache_mp_lookup_hit_tokens_total": num_tokens,
        "lmcache_mp_l1_memory_usage_bytes": num_bytes,
    }
    before = figures(vllm, cache_server, expected)

    prompt = random_prompt("figures", 3 * CHUNK + 100)
    for _ in range(3):
        vllm.complete(prompt)
        vllm.forget()

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in figures(vllm, cache_server, expected).items()}

    # vLLM tells its metrics of a step after it has answered.
    wait_until(lambda: grown() == expected, f"{expected} have come together", show=grown)
    assert "vllm:lmcache_failed_loads_total{" in vllm.metrics()
    assert metric(vllm.metrics(), "vllm:lmcache_load_seconds_total") > 0
    assert worker_ids(cache_server) == [0]


def test_two_engines_share_their_prompts(
    vllm: VllmServe, second_engine: EngineProcess, cache_server: RunningServer
) -> None:
    prompt = random_prompt("shared", CHUNK + 50)
    second_engine.generate([prompt], 1)
    second_engine.forget()
    assert worker_ids(cache_server) == [0, 1]

    hit, num_cached = vllm.complete(prompt)

    assert num_cached == CHUNK
    own = second_engine.generate([prompt], 6)[0]
    assert (own.token_ids, own.num_cached_tokens) == (hit, CHUNK)


def l1_figures(server: RunningServer) -> dict[str, int]:
    names = ("total_object_count", "memory_used_bytes", "write_locked_count", "read_locked_count", "quarantined_count")
    found = l1_status(server)
    return {name: found[name] for name in names}


def test_engine_killed_while_it_saves(
    vllm: VllmServe, second_engine: EngineProcess, cache_server: RunningServer, hold_file: pathlib.Path
) -> None:
    """What it had reserved comes back, and the engine that is left goes on as if nothing had been."""
    wait_until(lambda: not l1_status(cache_server)["read_locked_count"], "what was found before is let go of")
    before = l1_figures(cache_server)
    prompt = random_prompt("killed", 3 * CHUNK + 20)
    hold_file.touch()
    second_engine.generate([prompt], 1)
    wait_until(lambda: l1_status(cache_server)["write_locked_count"] == 3, "three chunks are being written")
    assert second_engine.process.pid is not None

    with process_tree_killed(second_engine.process.pid) as processes:
        kill_all(processes)

    wait_until(lambda: num_clients(cache_server) == 2, "the dead engine is given up")
    wait_until(lambda: l1_figures(cache_server) == before, f"{before} is held again")
    assert worker_ids(cache_server) == [0]
    assert vllm.complete(prompt)[1] == 0
    vllm.forget()
    assert l1_status(cache_server)["total_object_count"] == before["total_object_count"] + 3
    assert vllm.complete(prompt)[1] == 3 * CHUNK
