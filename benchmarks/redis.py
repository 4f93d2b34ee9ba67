"""The redis tier against bare redis-py with hiredis on the same server: stores and loads by as many threads.

The server is on a unix socket and shares the processor with both. Ours adds headers and checksums and
loads into the pool; redis-py alone loads into memory of its own.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import redis

from benchmarks.common import Row, alternating_pairs, median, print_rows
from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.redis import Config, make
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.redis_server import RedisServer, find_redis_server

OBJECT_BYTES = 8 * MIB
NUM_OBJECTS = 16
NUM_THREADS = 2
NUM_PAIRS = 11
RATIO_MIN = 0.8


class _Contest:
    """Objects in memory, a tier on the server, and bare threads on other keys of it."""

    def __init__(self, server: RedisServer) -> None:
        self._pool = memoryview(bytearray(os.urandom(MIB) * (NUM_OBJECTS * OBJECT_BYTES // MIB)))
        # One thread of a tier is kept free for reads.
        config = Config(unix_socket_path=server.socket_path, prefix="tier", num_workers=NUM_THREADS + 1)
        self._adapter = make(config, AdapterContext("redis"))
        metrics = StorageMetrics(MetricRegistry(), Counter("read_failure", ""), Counter("allocation_failure", ""))
        self.tier = Tier(0, self._adapter, metrics)
        self.tier.start()
        self.tier.wait_until_open(30)
        self._keys = [ObjectKey(bytes([number]) * 32, "org/model", 0x01000100) for number in range(NUM_OBJECTS)]
        self._bare = redis.Redis(unix_socket_path=server.socket_path)
        self._threads = ThreadPoolExecutor(NUM_THREADS)

    def _slot(self, number: int) -> memoryview:
        return self._pool[number * OBJECT_BYTES : (number + 1) * OBJECT_BYTES]

    def store(self) -> None:
        answers: queue.SimpleQueue[StoreStatus | None] = queue.SimpleQueue()
        for number, key in enumerate(self._keys):
            self.tier.submit_store(key, Source(self._slot(number)), answers.put)
        if any(answers.get() is not StoreStatus.STORED for _ in self._keys):
            raise RuntimeError("an object was not stored")

    def load(self) -> None:
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        for number, key in enumerate(self._keys):
            self.tier.submit_load(key, self._slot(number), answers.put)
        if any(answers.get() is None for _ in self._keys):
            raise RuntimeError("an object was not loaded")

    def bare_store(self) -> None:
        self._in_threads(lambda number: self._bare.set(f"bare-{number}", self._slot(number)))

    def bare_load(self) -> None:
        self._in_threads(lambda number: self._bare.get(f"bare-{number}"))

    def _in_threads(self, work: Callable[[int], object]) -> None:
        list(self._threads.map(work, range(NUM_OBJECTS)))

    def delete(self) -> None:
        self._adapter.delete(self._keys)
        self._bare.delete(*[f"bare-{number}" for number in range(NUM_OBJECTS)])

    def close(self) -> None:
        self._threads.shutdown()
        self.tier.close(10)
        self._bare.close()


def _compared(what: str, pairs: list[tuple[float, float]]) -> list[Row]:
    ratio = median([bare_s / ours_s for ours_s, bare_s in pairs])
    gigabytes = NUM_OBJECTS * OBJECT_BYTES / 1e9
    return [
        Row(f"{what}, checksum included", f"{gigabytes / median([ours_s for ours_s, _ in pairs]):.2f} GB/s"),
        Row("redis-py alone", f"{gigabytes / median([bare_s for _, bare_s in pairs]):.2f} GB/s"),
        Row(f"{what} as a part of that", f"{ratio:.2f}", f">= {RATIO_MIN}", ratio >= RATIO_MIN),
    ]


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
    rows = [*_compared("load", loads), *_compared("store", stores)]
    print_rows(f"redis: {NUM_OBJECTS} objects of 8 MiB, {NUM_THREADS} threads, a unix socket", rows)
    return rows


if __name__ == "__main__":
    main()
