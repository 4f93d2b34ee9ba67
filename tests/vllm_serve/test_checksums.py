"""/status and /kvcache/check with real vLLM workers, alone and as two tensor-parallel ranks.

The expected MD5s come from the tensors of vLLM's own model runner, computed in each worker's process.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import TINY_LLAMA
from lmcache.testing.vllm_spec import EngineSpec
from tests.server.running import RunningServer
from tests.vllm_serve.conftest import CHUNK
from tests.vllm_serve.serving import num_clients, random_prompt, status, wait_until, wait_until_it_saves, worker_ids
from tests.vllm_serve.workers import ENVIRONMENT, TWO_RANKS, in_workers

NUM_BLOCKS, BLOCK = 24, 128
NUM_CHUNKS = 3
NUM_LAYERS = TINY_LLAMA["num_hidden_layers"]
BLOCKS_PER_CHUNK = CHUNK // BLOCK


@dataclass
class Checked:
    """An engine of so many ranks, and the server it has joined."""

    process: EngineProcess
    server: RunningServer
    num_ranks: int

    def in_workers(self, name: str, *arguments: Any) -> list[Any]:
        """One result per rank."""
        return in_workers(self.process, name, *arguments)

    def check(self, **query: Any) -> dict[str, Any]:
        answer = self.server.http.get("/kvcache/check", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def context(self, rank: int) -> tuple[int, dict[str, Any]]:
        """Instance id and context of a rank: they register in any order."""
        contexts = status(self.server)["cache_context_meta"]
        return next((int(number), found) for number, found in contexts.items() if found["rank"] == rank)

    def instance_id(self, rank: int) -> int:
        return self.context(rank)[0]

    def block_digests(self, rank: int) -> list[str]:
        """Of every block, by id."""
        found: list[str] = self.check(
            block_ids=f"[0,{NUM_BLOCKS - 1}]", chunk_size=1, instance_id=self.instance_id(rank)
        )["chunk_checksums"]
        return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two ranks"])
def engine(
    request: pytest.FixtureRequest, model: pathlib.Path, cache_server: RunningServer, connector: dict[str, Any]
) -> Iterator[Checked]:
    num_ranks = request.param
    environment = TWO_RANKS if num_ranks > 1 else ENVIRONMENT
    options = {
        "tensor_parallel_size": num_ranks, "max_model_len": 2048, "num_gpu_blocks_override": NUM_BLOCKS,
    }  # fmt: skip
    spec = EngineSpec(model, connector=connector, options=options, environment=environment, multiprocess=num_ranks > 1)
    process = EngineProcess(spec)
    try:
        wait_until(lambda: num_clients(cache_server) == 1 + num_ranks, "a scheduler and its workers are registered")
        wait_until_it_saves(process, cache_server)
        yield Checked(process, cache_server, num_ranks)
    finally:
        process.close()
    wait_until(lambda: not num_clients(cache_server), "they are unregistered")


def test_contexts_tell_the_real_layout(engine: Checked) -> None:
    assert worker_ids(engine.server) == list(range(engine.num_ranks))
    for rank, shapes in enumerate(engine.in_workers("shape")):
        _, context = engine.context(rank)
        assert context["world_size"] == engine.num_ranks
        layout = context["kv_cache_layout"]
        (group,) = layout.pop("kernel_groups")
        assert layout == {
            "num_layers": NUM_LAYERS, "num_blocks": NUM_BLOCKS, "cache_size_per_token": 2048 // engine.num_ranks,
        }  # fmt: skip
        assert group == {
            "kernel_group_idx": 0, "engine_group_idx": 0, "object_group_idx": 0,
            "num_layers": NUM_LAYERS, "layer_indices": list(range(NUM_LAYERS)),
            "tokens_per_block": BLOCK, "slots_per_block": BLOCK, "dtype": "torch.bfloat16", "is_mla": False,
            "engine_kv_concrete_shape": str(shapes[0]), "engine_kv_shape": "[blocks, heads, tokens, content]",
            "engine_kv_format": group["engine_kv_format"], "attention_backend": "CPU_ATTN",
        }  # fmt: skip
        assert set(group["engine_kv_format"].split("_")) - {"X"} == {"NL", "NB", "NH", "BS", "HS"}
        assert shapes == [shapes[0]] * NUM_LAYERS


@pytest.mark.parametrize("block_ids", [[0, 1, 2, 3], [5, 1, 1, 23, 2], list(range(NUM_BLOCKS))])
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_checksums_are_those_of_the_engines_tensors(engine: Checked, block_ids: list[int], chunk_size: int) -> None:
    engine.process.generate([random_prompt("checksums", 900)], 1)
    engine.process.forget()
    for rank, (over_all, by_layer) in enumerate(engine.in_workers("digests", block_ids, chunk_size)):
        query = {
            "block_ids": ",".join(map(str, block_ids)),
            "chunk_size": chunk_size,
            "instance_id": engine.instance_id(rank),
        }
        assert engine.check(**query)["chunk_checksums"] == over_all
        assert engine.check(**query, layerwise=True)["chunk_checksums"] == by_layer


def test_a_retrieve_brings_back_what_was_stored(engine: Checked) -> None:
    """Every page is wiped between the two: what is there afterwards came from the cache."""
    prompt = random_prompt("round trip", NUM_CHUNKS * CHUNK + 100)
    engine.in_workers("wipe")
    engine.process.generate([prompt], 1)
    engine.process.forget()
    wiped = [engine.block_digests(rank)[0] for rank in range(engine.num_ranks)]
    computed = [set(engine.block_digests(rank)) - {wiped[rank]} for rank in range(engine.num_ranks)]

    engine.in_workers("wipe")
    assert all(set(engine.block_digests(rank)) == {wiped[rank]} for rank in range(engine.num_ranks))
    (hit,) = engine.process.generate([prompt], 1)
    assert hit.num_cached_tokens == NUM_CHUNKS * CHUNK

    for rank in range(engine.num_ranks):
        again = set(engine.block_digests(rank)) & computed[rank]
        assert len(again) >= NUM_CHUNKS * BLOCKS_PER_CHUNK
        expected = engine.in_workers("digests", list(range(NUM_BLOCKS)), 1)[rank][0]
        assert engine.block_digests(rank) == expected
    engine.process.forget()


def test_later_name(engine: Checked) -> None:
    body = {
        "block_ids": [0, 2, 3],
        "chunk_size": 2,
        "instance_id": engine.instance_id(engine.num_ranks - 1),
        "layerwise": True,
    }
    answer = engine.server.http.post("/cache/checksums", json=body).json()
    assert answer["chunk_checksums"] == engine.in_workers("digests", [0, 2, 3], 2)[-1][1]
