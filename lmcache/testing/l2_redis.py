"""The Redis adapter's objects, reached behind its back."""

from __future__ import annotations

import itertools
import os
from typing import Any, cast

import redis

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.redis.adapter import RedisL2Adapter
from lmcache.l2.redis.config import RedisConfig
from lmcache.l2.redis.names import Names
from lmcache.testing.l2_backend import L2Backend
from lmcache.testing.redis_server import SOCKET_TIMEOUT_S, RedisCluster, RedisServer

_numbers = itertools.count()


class RedisBackend(L2Backend):
    """Objects of one prefix that nobody else uses, on a server or a cluster that others may use as well."""

    payload_sizes = (1, 4096, 100_003, 5_000_001)

    def __init__(self, server: RedisServer | None = None, cluster: RedisCluster | None = None) -> None:
        self.prefix = f"test-{os.getpid()}-{next(_numbers)}"
        self._cluster = cluster
        self._socket_path = server.socket_path if server else None
        self._names = Names(self.prefix)
        self._clients: list[Any] = [
            redis.Redis(unix_socket_path=node.socket_path, protocol=2, socket_timeout=SOCKET_TIMEOUT_S)
            for node in [*([server] if server else []), *(cluster.nodes if cluster else [])]
        ]

    def config(self, capacity_bytes: int = 0) -> RedisConfig:
        return RedisConfig(
            nodes=self._cluster.addresses if self._cluster else (), unix_socket_path=self._socket_path,
            prefix=self.prefix, max_capacity_gb=capacity_bytes / GIB, socket_timeout_s=SOCKET_TIMEOUT_S,
        )  # fmt: skip

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        return RedisL2Adapter(self.config(capacity_bytes), context)

    def content(self, key: ObjectKey) -> bytes | None:
        return cast(bytes | None, self._at(key).get(self._names.name(key)))

    def replace(self, key: ObjectKey, content: bytes) -> None:
        self._at(key).set(self._names.name(key), content)

    def remove(self, key: ObjectKey) -> None:
        self._at(key).delete(self._names.name(key))

    def num_objects(self) -> int:
        return sum(len(list(client.scan_iter(f"{self.prefix}*"))) for client in self._clients)

    def _at(self, key: ObjectKey) -> Any:
        """The node whose slot this is."""
        if self._cluster is None:
            return self._clients[0]
        slot = self._clients[0].execute_command("CLUSTER KEYSLOT", self._names.name(key))
        return self._clients[self._cluster.node_of(slot)]

    def close(self) -> None:
        for client in self._clients:
            for name in client.scan_iter(f"{self.prefix}*"):
                client.delete(name)
            client.close()
