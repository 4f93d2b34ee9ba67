"""The Redis adapter on a real server and on a real cluster, held to the contract."""

from __future__ import annotations

import pytest

from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_redis import RedisBackend
from lmcache.testing.redis_server import RedisCluster, RedisServer
from tests.l2.redis_servers import need_redis_server

_running: list[RedisServer] = []


@pytest.fixture(scope="module", autouse=True)
def server():
    need_redis_server()
    server = RedisServer()
    _running.append(server)
    yield server
    _running.clear()
    server.close()


@pytest.fixture(scope="module")
def cluster():
    cluster = RedisCluster()
    yield cluster
    cluster.close()


class TestRedis(L2AdapterContract):
    @pytest.fixture
    def backend(self, server):
        return RedisBackend(server)


class TestCluster(L2AdapterContract):
    @pytest.fixture
    def backend(self, cluster):
        return RedisBackend(cluster=cluster)


TestMachine = l2_machine(lambda: RedisBackend(_running[0])).TestCase
