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
from lmcache.errors import InstanceError
from lmcache.integration.mp.checksums import answer_query
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.integration.vllm.checksums import block_checksums, layers_by_index, readers
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_bytes_are_those_of_the_values_whatever_their_strides(dtype, chunk_size):
    """Keys and values of one allocation, cut across: the digest is of the logical order, bfloat16 as float32."""
    memory = torch.arange(4 * 5 * 3 * 8, dtype=torch.float32).remainder(200).reshape(4, 5, 3, 8).to(dtype)
    layer, block_ids = memory.permute(1, 2, 0, 3), [4, 0, 0, 3, 2]
    widened = layer.float() if dtype == torch.bfloat16 else layer.contiguous().view(torch.uint8)
    blobs = [widened[block_id].contiguous().numpy().tobytes() for block_id in block_ids]
    expected = [b"".join(blobs[start : start + chunk_size]) for start in range(0, 5, chunk_size)]
    assert block_checksums([layer], block_ids, chunk_size, False) == [
        [hashlib.md5(blob).hexdigest() for blob in expected]
    ]


def test_large_blocks_are_read_in_pieces():
    layer = torch.arange(6 * 5_000_000, dtype=torch.uint8).reshape(6, 1, 1, 5_000_000)
    assert block_checksums([layer], [5, 1, 2], 3, False) == [
        [hashlib.md5(layer[[5, 1, 2]].numpy().tobytes()).hexdigest()]
    ]


def named_layout(num_blocks, *groups):
    made = tuple(KernelGroup(names, 64, "float32", (num_blocks, 1, 4, 2)) for names in groups)
    return KVLayout(4, num_blocks, made, "NL_X_NB_NH_BS_HS", "test")


def test_layers_are_in_the_order_of_the_model_and_shared_ones_count_once():
    names = [f"model.layers.{number}.attn" for number in (10, 2, 7, 3)]
    layers = {name: torch.full((3, 1, 4, 2), float(number)) for number, name in enumerate(names)}
    layout = named_layout(3, (names[0], names[2]), (names[1],))
    ordered = layers_by_index(layers, layout)
    assert [layer[0, 0, 0, 0, 0].item() for layer in ordered] == [1, 2, 0]
    assert layout.layer_indices == (10, 7, 2)


def test_blocks_are_the_engines_where_its_kernels_cut_them():
    """Two kernel blocks of four tokens make a block of eight."""
    cut = torch.arange(6 * 8, dtype=torch.float32).reshape(6, 1, 4, 2)
    (layer,) = layers_by_index({"layers.0": cut}, named_layout(3, ("layers.0",)))
    expected = hashlib.md5(cut[2:4].numpy().tobytes()).hexdigest()
    assert block_checksums([layer], [1], 1, False) == [[expected]]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (m.ChecksumQuery(1, [0, 4], 1, False), "block id 4 is outside the cache of 4 blocks"),
        (m.ChecksumQuery(1, [-1], 1, False), "block id -1 is outside the cache of 4 blocks"),
        (m.ChecksumQuery(1, [0], 0, False), "chunk_size must be positive (got 0)"),
        (m.ChecksumQuery(1, [0], -1, True), "chunk_size must be positive (got -1)"),
    ],
)
def test_a_worker_answers_what_is_wrong_with_a_question(query, error):
    assert answer_query(query, readers([torch.zeros(4, 1, 1, 1)]), 4) == m.ChecksumResult(1, [], error)


def test_a_worker_without_layers_answers_no_rows():
    assert answer_query(m.ChecksumQuery(1, [0], 1, True), [], 4) == m.ChecksumResult(1, [])


def test_a_worker_stops_when_nobody_waits_any_more(clock):
    def read_slowly(block_ids):
        for _ in block_ids:
            clock.advance(1.0)
            yield b"block"

    query = m.ChecksumQuery(1, [0, 1, 2], 1, False, time_limit_s=2.5)
    assert answer_query(query, [read_slowly], 4, clock).error == "the checksums took longer than 2.5 s"
    assert clock() == 1003.0
    query = m.ChecksumQuery(1, [0, 1, 2], 1, False, time_limit_s=3.5)
    assert len(answer_query(query, [read_slowly], 4, clock).checksums[0]) == 3


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
        return answer_query(query, readers(layers), layers[0].shape[0])

    member = Membership(
        MembershipConfig(server.ipc_url), secrets.randbits(63) | 1, "worker", register, answer if answers else None
    )
    member.start()
    assert member.wait_until_joined(30) is not None
    return member


def test_a_worker_answers_with_its_pages_as_they_are_now(server):
    layers = [torch.zeros(4, 2, 16, 2) for _ in range(2)]
    member = join_worker(server, layers)
    try:
        layers[1][3] = 7.0
        worker = server.engine.worker(0)
        rows = server.engine.checksums.query(worker, [3, 0], 2, True, 30.0)
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
        with pytest.raises(InstanceError, match="could not answer: block id 9 is outside"):
            server.engine.checksums.query(server.engine.worker(0), [9], 1, False, 30.0)
    finally:
        member.stop()


def test_a_worker_that_does_not_answer_costs_the_time_limit_only(server):
    member = join_worker(server, [torch.zeros(4, 2, 16, 2) for _ in range(2)], answers=False)
    try:
        with pytest.raises(InstanceError, match=r"instance 0 did not answer within 0\.3 s"):
            server.engine.checksums.query(server.engine.worker(0), [0], 1, False, 0.3)
    finally:
        member.stop()
