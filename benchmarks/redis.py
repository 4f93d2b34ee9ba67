"""The redis tier against bare redis-py with hiredis on the same server: stores and loads by as many threads.

The server is on a unix socket and shares the processor with both. Ours adds headers and checksums and
loads into the pool; redis-py alone loads into memory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis

from benchmarks.common import Row, print_rows
from benchmarks.tier_runs import ClientRuns, client_rows
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext
from lmcache.l2.redis import Config, make
from lmcache.testing.redis_server import RedisServer, find_redis_server

OBJECT_BYTES = 8 * MIB
NUM_OBJECTS = 16
NUM_THREADS = 2
NUM_PAIRS = 11


class _Keyspace(ClientRuns):
    def __init__(self, server: RedisServer) -> None:
        # One thread of a tier is kept free for reads.
        config = Config(unix_socket_path=server.socket_path, prefix="tier", num_workers=NUM_THREADS + 1)
        adapter = make(config, AdapterContext("redis"))
        super().__init__(adapter, NUM_OBJECTS, OBJECT_BYTES, NUM_THREADS, NUM_THREADS)
        self._bare = redis.Redis(unix_socket_path=server.socket_path)

    def put(self, name: str, data: memoryview) -> object:
        return self._bare.set(name, data)

    def get(self, name: str) -> object:
        return self._bare.get(name)

    def delete_bare(self, names: Sequence[str]) -> None:
        self._bare.delete(*names)

    def close(self) -> None:
        super().close()
        self._bare.close()


def main() -> list[Row]:
    if find_redis_server() is None:
        raise RuntimeError("there is no redis-server: install the dev extra, or the system's")
    server = RedisServer()
    try:
        rows = client_rows(lambda: _Keyspace(server), NUM_PAIRS, "redis-py alone")
    finally:
        server.close()
    print_rows(f"redis: {NUM_OBJECTS} objects of 8 MiB, {NUM_THREADS} threads, a unix socket", rows)
    return rows


if __name__ == "__main__":
    main()
