"""The redis tier against bare redis-py with hiredis on the same server: stores and loads by as many threads.

The server is on a unix socket and shares the processor with both. Ours adds headers and checksums and
loads into the pool; redis-py alone loads into memory of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import redis

from benchmarks.common import Row, alternating_pairs, print_rows
from benchmarks.tier_runs import TierRuns, plain_keys
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext
from lmcache.l2.redis import Config, make
from lmcache.testing.redis_server import RedisServer, find_redis_server

OBJECT_BYTES = 8 * MIB
NUM_OBJECTS = 16
NUM_THREADS = 2
NUM_PAIRS = 11


class _Contest(TierRuns):
    """Objects in memory, a tier on the server, and bare threads on other keys of it."""

    def __init__(self, server: RedisServer) -> None:
        # One thread of a tier is kept free for reads.
        config = Config(unix_socket_path=server.socket_path, prefix="tier", num_workers=NUM_THREADS + 1)
        pool = memoryview(bytearray(os.urandom(MIB) * (NUM_OBJECTS * OBJECT_BYTES // MIB)))
        super().__init__(make(config, AdapterContext("redis")), plain_keys(NUM_OBJECTS), pool)
        self._bare = redis.Redis(unix_socket_path=server.socket_path)
        self._threads = ThreadPoolExecutor(NUM_THREADS)

    def bare_store(self) -> None:
        self._in_threads(lambda number: self._bare.set(f"bare-{number}", self.slot(number)))

    def bare_load(self) -> None:
        self._in_threads(lambda number: self._bare.get(f"bare-{number}"))

    def _in_threads(self, work: Callable[[int], object]) -> None:
        list(self._threads.map(work, range(NUM_OBJECTS)))

    def delete(self) -> None:
        super().delete()
        self._bare.delete(*[f"bare-{number}" for number in range(NUM_OBJECTS)])

    def close(self) -> None:
        self._threads.shutdown()
        super().close()
        self._bare.close()


def main() -> list[Row]:
    if find_redis_server() is None:
        raise RuntimeError("there is no redis-server: install the dev extra, or the system's")
    server = RedisServer()
    try:
        contest = _Contest(server)
        try:
            stores = alternating_pairs(contest.store, contest.bare_store, contest.delete, NUM_PAIRS)
            loads = alternating_pairs(contest.load, contest.bare_load, lambda: None, NUM_PAIRS)
        finally:
            contest.close()
    finally:
        server.close()
    rows = [
        *contest.compared("load", loads, "redis-py alone"),
        *contest.compared("store", stores, "redis-py alone"),
    ]
    print_rows(f"redis: {NUM_OBJECTS} objects of 8 MiB, {NUM_THREADS} threads, a unix socket", rows)
    return rows


if __name__ == "__main__":
    main()
