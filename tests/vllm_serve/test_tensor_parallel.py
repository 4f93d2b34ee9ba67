"""Two tensor-parallel ranks, each in a process of its own, on one server."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmcache.core.keys import ObjectKey, make_kv_rank
from lmcache.testing.l2_fs import FSBackend
from lmcache.testing.ports import free_port
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec, Output
from tests.server.running import RunningServer
from tests.vllm_serve.conftest import CHUNK
from tests.vllm_serve.serving import (
    handicapped,
    is_stored_in_l2,
    keys_in_l2,
    l1_status,
    num_clients,
    random_prompt,
    status,
    wait_until,
    wait_until_it_saves,
    worker_ids,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> FSBackend:
    """L2 of the server below, reached behind its back."""
    return FSBackend(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def cache_server(make_pool_folder: Callable[[], pathlib.Path], shards: FSBackend) -> Iterator[RunningServer]:
    folder = make_pool_folder()
    adapter = json.dumps({"type": "fs", "base_path": str(shards.base)})
    server = RunningServer(folder, "--port", str(free_port()), "--l1-size-gb", "0.25", "--l2-adapter", adapter)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


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
        wait_until_it_saves(process, cache_server)
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


def shards_of(server: RunningServer, salt: str) -> set[ObjectKey]:
    return {key for key, _ in keys_in_l2(server) if key.cache_salt == salt}


def store_chunk_by_chunk(
    engine: EngineProcess, server: RunningServer, prompt: list[int], salt: str, num_chunks: int
) -> list[dict[int, ObjectKey]]:
    """The keys of each chunk by rank, as they appear in L2."""
    found: list[dict[int, ObjectKey]] = []
    ranks = {make_kv_rank(2, rank, 2, rank): rank for rank in range(2)}
    known: set[ObjectKey] = set()
    for number in range(1, num_chunks + 1):
        engine.generate([prompt[: number * CHUNK]], 1, salts=[salt])
        wait_until(lambda number=number: len(shards_of(server, salt)) == 2 * number, "both ranks' shards are in L2")
        new = shards_of(server, salt) - known
        known |= new
        found.append({ranks[key.kv_rank]: key for key in new})
    return found


def own_hit(engine: EngineProcess, prompt: list[int], num_chunks: int) -> Output:
    """What vLLM says with so many chunks from its own prefix cache, computed one after the other."""
    for number in range(1, num_chunks + 1):
        engine.generate([prompt[: number * CHUNK]], 1, salts=[f"oracle of {num_chunks}"])
    output = engine.generate([prompt], 6, salts=[f"oracle of {num_chunks}"])[0]
    assert output.num_cached_tokens == num_chunks * CHUNK
    return output


def from_l2_alone(engine: EngineProcess, server: RunningServer, prompt: list[int], salt: str) -> Output:
    engine.forget()
    wait_until(lambda: is_stored_in_l2(server), "what was computed is stored in L2")
    assert server.http.post("/clear-cache").status_code == 200
    return engine.generate([prompt], 6, salts=[salt])[0]


def test_shards_in_l2(engine: EngineProcess, cache_server: RunningServer, shards: FSBackend) -> None:
    """A chunk counts as far as the shards of all ranks are there, whatever becomes of one of them."""
    prompt, salt = random_prompt("shards", 3 * CHUNK + 100), "shards"
    chunks = store_chunk_by_chunk(engine, cache_server, prompt, salt, 3)
    assert [set(chunk) for chunk in chunks] == [{0, 1}] * 3
    for num_left, lost_rank in ((3, None), (1, 1), (0, 0)):
        if lost_rank is not None:
            shards.remove(chunks[num_left][lost_rank])
        expected = own_hit(engine, prompt, num_left)
        found = from_l2_alone(engine, cache_server, prompt, salt)
        assert found.num_cached_tokens == num_left * CHUNK
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
