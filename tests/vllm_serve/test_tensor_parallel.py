"""Two tensor-parallel ranks, each in a process of its own, on one server."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec
from tests.server.running import RunningServer
from tests.vllm_serve.conftest import CHUNK
from tests.vllm_serve.serving import handicapped, l1_status, num_clients, random_prompt, status, wait_until, worker_ids


@pytest.fixture(scope="module")
def mute_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """While it exists, rank 1 stores nothing."""
    return tmp_path_factory.mktemp("mute") / "rank-1"


@pytest.fixture(scope="module")
def engine(
    model: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any], mute_file: pathlib.Path
) -> Iterator[EngineProcess]:
    spec = EngineSpec(
        model,
        connector=handicapped(connector, mute_file=str(mute_file)),
        options={"tensor_parallel_size": 2, "max_model_len": 2048},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "OMP_NUM_THREADS": "1"},
        multiprocess=True,
    )
    process = EngineProcess(spec)
    try:
        wait_until(lambda: num_clients(cache_server) == 3, "a scheduler and two workers are registered")
        yield process
    finally:
        process.close()


def test_both_ranks_are_registered(engine: EngineProcess, cache_server: RunningServer) -> None:
    assert worker_ids(cache_server) == [0, 1]
    contexts = status(cache_server)["cache_context_meta"]
    assert [contexts[rank]["world_size"] for rank in ("0", "1")] == [2, 2]


def test_hit_equals_own_hit(engine: EngineProcess, cache_server: RunningServer) -> None:
    prompt = random_prompt("tensor parallel", 900)
    engine.generate([prompt], 1)
    engine.forget()
    assert l1_status(cache_server)["total_object_count"] == 2 * 3

    hit = engine.generate([prompt], 6)[0]

    engine.generate([prompt[: 3 * CHUNK]], 1, salts=["oracle"])
    own = engine.generate([prompt], 6, salts=["oracle"])[0]
    assert (hit.num_cached_tokens, own.num_cached_tokens) == (3 * CHUNK, 3 * CHUNK)
    assert (hit.token_ids, hit.logprobs) == (own.token_ids, own.logprobs)


def test_one_rank_alone_is_no_hit(engine: EngineProcess, cache_server: RunningServer, mute_file: pathlib.Path) -> None:
    prompt = random_prompt("one rank", 2 * CHUNK + 10)
    num_before = l1_status(cache_server)["total_object_count"]
    mute_file.touch()
    engine.generate([prompt], 1)
    engine.forget()
    assert l1_status(cache_server)["total_object_count"] == num_before + 2
    mute_file.unlink()

    assert engine.generate([prompt], 1)[0].num_cached_tokens == 0

    engine.forget()
    assert l1_status(cache_server)["total_object_count"] == num_before + 4
    assert engine.generate([prompt], 1)[0].num_cached_tokens == 2 * CHUNK
