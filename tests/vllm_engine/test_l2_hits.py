"""What outlives the pool: vLLM and the server start anew, and a prompt from before is answered from L2."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.testing.l2_dax import DaxBackend
from lmcache.testing.l2_fs import FSBackend
from lmcache.testing.l2_redis import RedisBackend
from lmcache.testing.l2_s3 import MotoBackend
from lmcache.testing.ports import free_port
from lmcache.testing.redis_server import RedisServer, find_redis_server
from lmcache.testing.s3_servers import ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY, MotoServer
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import Output, patient_connector
from tests.l2.redis_servers import need_redis_server
from tests.vllm_engine.tiers import Tier, TierServer, tier_server
from tests.vllm_serve.serving import wait_until
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import CHUNK, prompt_of, same

NUM_CHUNKS = 3
PROMPT = prompt_of(NUM_CHUNKS * CHUNK + 132, seed="outlives the pool")
NUM_CLIENTS = 2  # a scheduler and a worker
KV_BYTES_PER_TOKEN = 2048
TIERS = ("fs", "s3", "dax", "redis")
SHARED_TIERS = ("fs", "s3", "redis")

KNOW = """
from vllm.distributed.kv_transfer import get_kv_transfer_group
halves = scheduler.connector._scheduler, get_kv_transfer_group()._worker
result = all(half.membership.current is not None for half in halves)
"""

StartEngine = Callable[[int], contextlib.AbstractContextManager[EngineProcess]]


@dataclass
class Before:
    """What there was before everything ended: what vLLM says by itself, and what was stored."""

    port: int
    computed: Output
    own_hit: Output
    keys: dict[str, list[ObjectKey]]


@pytest.fixture(scope="module")
def start_engine(model_folder: pathlib.Path) -> StartEngine:
    @contextlib.contextmanager
    def started(port: int) -> Iterator[EngineProcess]:
        process = EngineProcess(spec_of(model_folder, patient_connector(port, heartbeat_interval=0.1)))
        try:
            yield process
        finally:
            process.close()

    return started


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tier]]:
    """Those that there is a backend for, by name."""
    with contextlib.ExitStack() as stack:
        moto = MotoServer()
        moto.start()
        stack.callback(moto.kill)
        folder = tmp_path_factory.mktemp("tiers")
        found = [fs_tier(folder), s3_tier(moto), dax_tier(folder)]
        if find_redis_server() is not None:
            redis = RedisServer()
            stack.callback(redis.close)
            found.append(redis_tier(redis))
        for tier in found:
            stack.callback(tier.backend.close)
        yield {tier.name: tier for tier in found}


def fs_tier(folder: pathlib.Path) -> Tier:
    backend = FSBackend(folder)
    return Tier("fs", {"type": "fs", "base_path": str(backend.base)}, backend)


def s3_tier(server: MotoServer) -> Tier:
    backend = MotoBackend(server)
    settings = {
        "type": "s3", "s3_endpoint": f"s3://{BUCKET}", "s3_endpoint_url": server.url, "s3_region": REGION,
        "s3_prefix": backend.prefix, "s3_num_io_threads": 4,
        "aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY,
    }  # fmt: skip
    return Tier("s3", settings, backend)


def dax_tier(folder: pathlib.Path) -> Tier:
    backend = DaxBackend(num_devices=1, slot_bytes=CHUNK * KV_BYTES_PER_TOKEN, parent=folder)
    return Tier("dax", {"type": "dax", **backend.settings(num_slots=16)}, backend)


def redis_tier(server: RedisServer) -> Tier:
    backend = RedisBackend(server)
    settings = {"type": "resp", "unix_socket_path": server.socket_path, "prefix": backend.prefix}
    return Tier("redis", settings, backend)


def pick(tiers: dict[str, Tier], name: str) -> Tier:
    """Skip the test where the tier's backend cannot run."""
    if name not in tiers:
        need_redis_server()
    return tiers[name]


def join(engine: EngineProcess, server: TierServer) -> None:
    """The engine is registered with this server, not with one before it, and both its halves know."""
    wait_until(lambda: server.num_clients() == NUM_CLIENTS, "scheduler and worker are registered")
    wait_until(lambda: bool(engine.run(KNOW)), "scheduler and worker know that they are")
    assert engine.call("wait_until_joined")


def ask(engine: EngineProcess, prompt: list[int] = PROMPT, salt: str = "") -> Output:
    """One request; vLLM has forgotten all before, and its saves have ended after."""
    engine.settle()
    engine.forget()
    (output,) = engine.generate([prompt], 4, salts=[salt] if salt else None)
    engine.settle()
    return output


def own_hit(engine: EngineProcess) -> Output:
    """vLLM's own prefix cache, while no server is there."""
    engine.generate([PROMPT[: NUM_CHUNKS * CHUNK]], 1)
    (output,) = engine.generate([PROMPT], 4)
    assert output.num_cached_tokens == NUM_CHUNKS * CHUNK
    return output


@pytest.fixture(scope="module")
def before(start_engine: StartEngine, tiers: dict[str, Tier]) -> Before:
    """One engine and one server after another store a prompt in every tier, and end."""
    port, keys = free_port(), {}
    with start_engine(port) as engine:
        expected = own_hit(engine)
        for tier in tiers.values():
            with tier_server(port, tier) as server:
                join(engine, server)
                # Stored as the oracle computed it: KV computed in steps of another size differs in rounding.
                assert ask(engine, PROMPT[: NUM_CHUNKS * CHUNK]).num_cached_tokens == 0
                server.wait_until_stored()
                keys[tier.name] = server.l1_keys()
        computed = ask(engine)
    return Before(port, computed, expected, keys)


@pytest.fixture(scope="module")
def after(start_engine: StartEngine, before: Before) -> Iterator[EngineProcess]:
    """Another vLLM, which has never seen the prompt."""
    with start_engine(before.port) as engine:
        yield engine


@pytest.mark.parametrize("name", TIERS)
def test_hit_after_everything_was_restarted(
    name: str, before: Before, after: EngineProcess, tiers: dict[str, Tier]
) -> None:
    tier = pick(tiers, name)
    keys = before.keys[name]
    assert len(keys) == NUM_CHUNKS
    with tier_server(before.port, tier) as server:
        join(after, server)
        assert server.l1_keys() == []
        check_listing(server, tier, keys)
        hit = ask(after)
        assert hit.num_cached_tokens == NUM_CHUNKS * CHUNK
        assert same(hit, before.own_hit)
        assert server.metric("lmcache_mp_l2_prefetch_load_completed_chunks_total") == NUM_CHUNKS
        assert server.metric("lmcache_mp_l2_corrupt_objects_chunks_total") == 0
        server.delete(keys)
        assert server.listed() == []
        assert tier.backend.num_objects() == 0

    with tier_server(before.port, tier) as server:
        join(after, server)
        missed = ask(after)
        assert missed.num_cached_tokens == 0
        assert same(missed, before.computed)
        server.wait_until_stored()
        check_listing(server, tier, keys)

    # Every object rots while nobody looks.
    tier.corrupt(keys)
    with tier_server(before.port, tier) as server:
        join(after, server)
        missed = ask(after)
        assert missed.num_cached_tokens == 0
        assert same(missed, before.computed)
        # The first one ends the search, with as many as were being read with it.
        assert 1 <= server.metric("lmcache_mp_l2_corrupt_objects_chunks_total") <= NUM_CHUNKS


def check_listing(server: TierServer, tier: Tier, keys: list[ObjectKey]) -> None:
    """The pages name what lies there, no more and no less, and how large it is."""
    listed = server.listed()
    assert dict(listed) == {key: tier.backend.stored_bytes(key) for key in keys}
    assert len(listed) == tier.backend.num_objects() == NUM_CHUNKS


@pytest.fixture(scope="module")
def beside(start_engine: StartEngine) -> Iterator[tuple[int, EngineProcess]]:
    """A third vLLM, for a server at another port."""
    port = free_port()
    with start_engine(port) as engine:
        yield port, engine


@pytest.mark.parametrize("name", SHARED_TIERS)
def test_two_servers_on_one_backend(
    name: str, before: Before, after: EngineProcess, beside: tuple[int, EngineProcess], tiers: dict[str, Tier]
) -> None:
    """Each with a pool, a port and an engine of its own: what one stored is a hit of the other."""
    tier, salt = pick(tiers, name), f"two servers on {name}"
    port, other = beside
    with tier_server(before.port, tier) as first, tier_server(port, tier) as second:
        join(after, first)
        join(other, second)
        assert ask(after, PROMPT[: NUM_CHUNKS * CHUNK], salt).num_cached_tokens == 0
        first.wait_until_stored()
        hit = ask(other, PROMPT, salt)
        assert hit.num_cached_tokens == NUM_CHUNKS * CHUNK
        assert same(hit, before.own_hit)
        assert second.metric("lmcache_mp_l2_prefetch_load_completed_chunks_total") == NUM_CHUNKS
