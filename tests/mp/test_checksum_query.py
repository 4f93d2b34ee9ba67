"""The server asks a worker for MD5s of its blocks, over the real transport; the documented vector holds."""

import hashlib
import json
import pathlib
import secrets
import uuid

import msgspec
import numpy as np
import pytest
import torch

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.pool import PoolConfig
from lmcache.errors import DeadlineExceededError, LMCacheError
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.integration.vllm.checksums import block_checksums
from lmcache.memory.pool_files import Geometry
from lmcache.protocol import messages as m
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry

LAYERS = [torch.arange(32, dtype=torch.float32).reshape(2, 4, 2, 1, 2) + 100 * i for i in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_documented_vector_over_all_layers(dtype):
    layers = [layer.to(dtype) for layer in LAYERS]
    assert block_checksums(layers, [0, 2, 3], 2, False, block_axis=1) == [
        ["988db8e61dde2e62b207bc93645b4ff0", "a298f19d86a04d9cd726484a773de0ac"]
    ]


def test_the_documented_vector_layer_by_layer():
    assert block_checksums(LAYERS, [0, 1, 2, 3], 3, True, block_axis=1) == [
        ["32ba5f3f536bf3ecd4eb720c8276bfbb", "c3712dd96d3c400cd5ac9ccc2915314b"],
        ["08f9c38ec49981c7b47415634ebb1f6e", "42dabd23c8bfbd31326d359fe1bc695c"],
    ]


@pytest.mark.parametrize("block_id", [-1, 4])
def test_a_block_outside_the_cache_is_named(block_id):
    with pytest.raises(IndexError, match=f"block id {block_id} is outside the cache of 4 blocks"):
        block_checksums(LAYERS, [block_id], 1, False, block_axis=1)


@pytest.fixture
def server():
    folder = pathlib.Path(f"/dev/shm/lmcache-test-checksum-{uuid.uuid4().hex[:8]}")
    config = EngineConfig(PoolConfig(folder, Geometry.for_pool(1 << 20)), chunk_size=32)
    running = LocalServer(LocalServerConfig(config, "tcp://127.0.0.1:*"), MetricRegistry(), PeriodicThreadRegistry())
    running.loop.start()
    yield running
    running.stop()


def join_worker(server, layers, answers=True):
    """A worker of one rank whose control connection answers from these layers."""
    group = KernelGroup(("layer.0", "layer.1"), 64, "float32", tuple(layers[0].shape))
    layout = KVLayout(16, layers[0].shape[0], (group,), "LBHNC", "test")

    def register(welcome, nonce):
        return m.RegisterWorker("engine", "model", 1, 0, msgspec.json.encode(layout), nonce)

    def answer(query):
        try:
            rows = block_checksums(layers, query.block_ids, query.chunk_size, query.layerwise)
        except IndexError as error:
            return m.ChecksumResult(query.query_id, [], str(error))
        return m.ChecksumResult(query.query_id, rows)

    member = Membership(
        MembershipConfig(server.ipc_url), secrets.randbits(63) | 1, "worker", register, answer if answers else None
    )
    member.start()
    assert member.wait_until_joined(10) is not None
    return member


def test_a_worker_answers_with_its_pages_as_they_are_now(server):
    layers = [torch.zeros(4, 2, 16, 2) for _ in range(2)]
    member = join_worker(server, layers)
    try:
        layers[1][3] = 7.0
        worker = server.engine.worker(0)
        rows = server.engine.checksums.query(worker, [3, 0], 2, True, 10.0)
        blocks = [np.concatenate([layer[3].numpy().reshape(-1), layer[0].numpy().reshape(-1)]) for layer in layers]
        assert rows == [[hashlib.md5(block.tobytes()).hexdigest()] for block in blocks]
        status = json.loads(json.dumps(server.engine.report_status()))
        assert status["registered_gpu_ids"] == [0]
        assert status["cache_context_meta"]["0"]["kv_cache_layout"]["num_blocks"] == 4
    finally:
        member.stop()


def test_a_workers_error_comes_back_as_such(server):
    member = join_worker(server, [torch.zeros(4, 2, 16, 2) for _ in range(2)])
    try:
        with pytest.raises(LMCacheError, match="block id 9 is outside"):
            server.engine.checksums.query(server.engine.worker(0), [9], 1, False, 10.0)
    finally:
        member.stop()


def test_a_worker_that_does_not_answer_costs_the_time_limit_only(server):
    member = join_worker(server, [torch.zeros(4, 2, 16, 2) for _ in range(2)], answers=False)
    try:
        with pytest.raises(DeadlineExceededError, match="instance 0 did not answer"):
            server.engine.checksums.query(server.engine.worker(0), [0], 1, False, 0.3)
    finally:
        member.stop()
