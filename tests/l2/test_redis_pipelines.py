"""The Redis adapter asks for many keys at once: the server's own counts say in how many pieces they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.redis.adapter import RedisL2Adapter
from lmcache.l2.redis.config import RedisConfig
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.redis_server import RedisServer
from tests.l2.redis_servers import need_redis_server

NUM_KEYS = 400
KEYS = [make_key(number) for number in range(NUM_KEYS)]
# Of a pipeline, however the network cuts it: a key takes some 100 bytes, redis-py sends 6000 at a time.
READS_MAX = NUM_KEYS // 8


@dataclass(frozen=True)
class Counts:
    """What one call cost: pieces that the server read, and commands of some kind."""

    num_reads: int
    num_commands: int


class Server:
    def __init__(self) -> None:
        self.redis = RedisServer()

    def count(self, command: str, call: Callable[[], object]) -> Counts:
        """Nobody else uses this server: its counts are those of `call`, and of our asking."""
        reads, commands = self._totals(command)
        call()
        reads_after, commands_after = self._totals(command)
        return Counts(reads_after - reads, commands_after - commands)

    def _totals(self, command: str) -> tuple[int, int]:
        with self.redis.client() as client:
            calls = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]
            return client.info("stats")["total_reads_processed"], calls


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    need_redis_server()
    server = Server()
    yield server
    server.redis.close()


@pytest.fixture
def make_adapter(server: Server) -> Iterator[Callable[[], RedisL2Adapter]]:
    made: list[RedisL2Adapter] = []

    def make() -> RedisL2Adapter:
        config = RedisConfig(unix_socket_path=server.redis.socket_path, prefix="pipelines")
        made.append(RedisL2Adapter(config, AdapterContext("redis")))
        made[-1].open()
        return made[-1]

    yield make
    for adapter in made:
        adapter.close()
    with server.redis.client() as client:
        client.flushall()


def fill(adapter: RedisL2Adapter) -> None:
    for number, key in enumerate(KEYS):
        assert adapter.store(key, Source(memoryview(make_data(number, 10)))) is StoreStatus.STORED


def test_each_object_is_stored_by_a_request_of_its_own(
    server: Server, make_adapter: Callable[[], RedisL2Adapter]
) -> None:
    """What the counts are when nothing is gathered."""
    adapter = make_adapter()
    counts = server.count("set", lambda: fill(adapter))
    assert counts.num_commands == NUM_KEYS
    assert counts.num_reads >= NUM_KEYS


def test_a_lookup_of_many_keys_is_one_pipeline(server: Server, make_adapter: Callable[[], RedisL2Adapter]) -> None:
    other, adapter = make_adapter(), make_adapter()
    fill(other)
    for expected in ("unknown until now", "held"):
        found: list[bool] = []
        counts = server.count("strlen", lambda found=found: found.extend(adapter.lookup(KEYS)))
        assert found == [True] * NUM_KEYS, expected
        assert counts.num_commands >= NUM_KEYS, "every key is asked for"
        assert counts.num_reads <= READS_MAX


def test_many_objects_are_deleted_by_one_pipeline(server: Server, make_adapter: Callable[[], RedisL2Adapter]) -> None:
    adapter = make_adapter()
    fill(adapter)
    counts = server.count("unlink", lambda: adapter.delete(KEYS))
    assert adapter.num_objects == 0
    assert counts.num_commands == NUM_KEYS
    assert counts.num_reads <= READS_MAX


def test_many_objects_are_evicted_by_one_pipeline(server: Server, make_adapter: Callable[[], RedisL2Adapter]) -> None:
    adapter = make_adapter()
    fill(adapter)
    counts = server.count("unlink", lambda: adapter.evict(1 << 40, NUM_KEYS))
    assert adapter.num_objects == 0
    assert counts.num_commands == NUM_KEYS
    assert counts.num_reads <= READS_MAX
