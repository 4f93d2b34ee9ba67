"""Pipeline ranks, each with layers of its own, and tensor ranks of an MLA model, which all hold the same bytes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import TINY_DEEPSEEK, TINY_LLAMA
from lmcache.testing.vllm_spec import EngineSpec
from tests.server.running import RunningServer
from tests.vllm_serve.conftest import CHUNK
from tests.vllm_serve.serving import l1_status, num_clients, random_prompt, status, wait_until, wait_until_it_saves
from tests.vllm_serve.workers import TWO_RANKS, filled_pages, in_workers

NUM_CHUNKS = 3
NUM_CLIENTS = 3  # a scheduler and two workers
MLA_BLOCK, MLA_BLOCKS = 16, 256
LLAMA_BLOCK, LLAMA_BLOCKS = 128, 24


def started(cache_server: RunningServer, spec: EngineSpec) -> Iterator[EngineProcess]:
    process = EngineProcess(spec)
    try:
        wait_until(lambda: num_clients(cache_server) == NUM_CLIENTS, "a scheduler and two workers are registered")
        wait_until_it_saves(process, cache_server)
        yield process
    finally:
        process.close()
    wait_until(lambda: not num_clients(cache_server), "they are unregistered")


@pytest.fixture
def pipeline(model: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any]) -> Iterator[EngineProcess]:
    """vLLM on CPU makes the buffers between pipeline stages while it warms up, which it does not where it only
    interprets: a pass-through compiler makes it do so."""
    options = {
        "pipeline_parallel_size": 2, "max_model_len": 2048, "num_gpu_blocks_override": LLAMA_BLOCKS,
        "enforce_eager": False, "compilation_config": {"mode": 3, "backend": "eager"},
    }  # fmt: skip
    environment = TWO_RANKS | {"TORCH_COMPILE_DISABLE": "0"}
    spec = EngineSpec(model, connector=connector, options=options, environment=environment, multiprocess=True)
    yield from started(cache_server, spec)


@pytest.fixture
def latent(tmp_path: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any]) -> Iterator[EngineProcess]:
    options = {"tensor_parallel_size": 2, "max_model_len": 2048, "num_gpu_blocks_override": MLA_BLOCKS}
    spec = EngineSpec(
        tmp_path / "model", dict(TINY_DEEPSEEK), connector, options=options, environment=TWO_RANKS, multiprocess=True
    )
    yield from started(cache_server, spec)


def check_round_trip(engine: EngineProcess, prompt: list[int], num_blocks: int, blocks_stored: int) -> list[set[str]]:
    """All pages are wiped between store and load: what is there afterwards came from the cache, on every rank.

    Returns what the ranks computed.
    """
    in_workers(engine, "wipe")
    engine.generate([prompt], 1)
    computed = filled_pages(engine, num_blocks)
    engine.forget()
    in_workers(engine, "wipe")
    assert filled_pages(engine, num_blocks) == [set(), set()]
    (hit,) = engine.generate([prompt], 1)
    assert hit.num_cached_tokens == NUM_CHUNKS * CHUNK
    for before, after in zip(computed, filled_pages(engine, num_blocks), strict=True):
        assert len(before & after) >= blocks_stored
    engine.forget()
    return computed


def test_pipeline_ranks(pipeline: EngineProcess, cache_server: RunningServer) -> None:
    contexts = status(cache_server)["cache_context_meta"].values()
    layers = {context["rank"]: context["kv_cache_layout"]["kernel_groups"][0]["layer_indices"] for context in contexts}
    half = TINY_LLAMA["num_hidden_layers"] // 2
    assert layers == {0: list(range(half)), 1: list(range(half, 2 * half))}

    prompt = random_prompt("pipeline", NUM_CHUNKS * CHUNK + 100)
    stored = check_round_trip(pipeline, prompt, LLAMA_BLOCKS, NUM_CHUNKS * CHUNK // LLAMA_BLOCK)
    assert not stored[0] & stored[1]
    assert l1_status(cache_server)["total_object_count"] == 2 * NUM_CHUNKS

    pipeline.forget()
    hit = pipeline.generate([prompt], 6)[0]
    pipeline.generate([prompt[: NUM_CHUNKS * CHUNK]], 1, salts=["oracle"])
    own = pipeline.generate([prompt], 6, salts=["oracle"])[0]
    assert (hit.num_cached_tokens, own.num_cached_tokens) == (NUM_CHUNKS * CHUNK, NUM_CHUNKS * CHUNK)
    assert (hit.token_ids, hit.logprobs) == (own.token_ids, own.logprobs)


def test_latents_are_stored_once_for_all_tensor_ranks(latent: EngineProcess, cache_server: RunningServer) -> None:
    num_before = l1_status(cache_server)["total_object_count"]
    prompt = random_prompt("latent", NUM_CHUNKS * CHUNK + 100)
    stored = check_round_trip(latent, prompt, MLA_BLOCKS, NUM_CHUNKS * CHUNK // MLA_BLOCK)
    assert stored[0] == stored[1]
    assert l1_status(cache_server)["total_object_count"] == num_before + NUM_CHUNKS

    # vLLM on CPU has no prefix cache for MLA to compare with: what it computes from nothing differs in rounding.
    hit = latent.generate([prompt], 6)[0]
    cold = latent.generate([prompt], 6, salts=["nobody stored for this one"])[0]
    assert (hit.num_cached_tokens, cold.num_cached_tokens) == (NUM_CHUNKS * CHUNK, 0)
    assert hit.logprobs[0] == pytest.approx(cold.logprobs[0], abs=0.05)
