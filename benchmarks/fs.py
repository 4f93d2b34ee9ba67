"""The fs tier against what the disk does by itself, and its index of a million objects at start.

Loads are held against `preadv` of the same files into the same memory by as many threads, stores
against `pwritev` to a temporary file and `rename`; ours check and make checksums as always.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pathlib
import queue
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from benchmarks.common import Row, alternating_pairs, print_rows, resident_bytes
from benchmarks.tier_runs import TierRuns
from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import MIB
from lmcache.l2.base import AdapterContext
from lmcache.l2.fs import Config, make
from lmcache.l2.fs.names import NUM_SHARDS, file_name, shard_name

OBJECT_BYTES = 16 * MIB
NUM_OBJECTS = 16
NUM_THREADS = 4
NUM_PAIRS = 15
HEADER_BYTES = 4096
NUM_INDEXED = 1_000_000
INDEX_SECONDS_MAX = 10.0
INDEX_MIB_MAX = 150
_MODEL = "meta-llama/Llama-3.1-70B-Instruct"


def _key(number: int) -> ObjectKey:
    digest = (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "big") + number.to_bytes(24, "big")
    return ObjectKey(digest, _MODEL, 0x01000100)


class _Files(TierRuns):
    """Objects in memory, the same as files, a tier on the folder, and bare threads beside it."""

    def __init__(self, base: pathlib.Path, use_odirect: bool = False) -> None:
        self._base = base / "tier"
        self._bare = base / "bare"
        self._bare.mkdir(parents=True)
        pool = memoryview(mmap.mmap(-1, NUM_OBJECTS * OBJECT_BYTES))
        config = Config(str(self._base), num_workers=NUM_THREADS, use_odirect=use_odirect)
        super().__init__(make(config, AdapterContext("fs")), [_key(number) for number in range(NUM_OBJECTS)], pool)
        for number in range(NUM_OBJECTS):
            self.slot(number)[:] = os.urandom(MIB) * (OBJECT_BYTES // MIB)
        self._header = bytes(HEADER_BYTES)

    def _path(self, number: int) -> pathlib.Path:
        return self._base / self.keys[number].chunk_hash[:1].hex() / os.fsdecode(file_name(self.keys[number]))

    def delete(self) -> None:
        super().delete()
        shutil.rmtree(self._bare)
        self._bare.mkdir()

    def bare_store(self) -> None:
        _in_threads(self._write_one)

    def bare_load(self) -> None:
        _in_threads(self._read_one)

    def _write_one(self, number: int) -> None:
        temporary = self._bare / f"{number}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.pwritev(descriptor, [self._header, self.slot(number)], 0) != HEADER_BYTES + OBJECT_BYTES:
                raise RuntimeError("a short write: is the disk full?")
        finally:
            os.close(descriptor)
        temporary.rename(self._bare / f"{number}.data")

    def _read_one(self, number: int) -> None:
        descriptor = os.open(self._path(number), os.O_RDONLY)
        try:
            if os.preadv(descriptor, [self.slot(number)], HEADER_BYTES) != OBJECT_BYTES:
                raise RuntimeError("a short read")
        finally:
            os.close(descriptor)


def _in_threads(work: Callable[[int], None]) -> None:
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(NUM_OBJECTS):
        numbers.put(number)

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                work(numbers.get_nowait())

    threads = [threading.Thread(target=run) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _transfer_rows(base: pathlib.Path) -> list[Row]:
    files = _Files(base)
    try:
        stores = alternating_pairs(files.store, files.bare_store, files.delete, NUM_PAIRS)
        _flush(base.rglob("*.data"))  # what is still being written to the disk would disturb the loads
        loads = alternating_pairs(files.load, files.bare_load, lambda: None, NUM_PAIRS)
    finally:
        files.close()
    return [
        *files.compared("load", loads, "preadv of the same"),
        *files.compared("store", stores, "pwrite+rename of the same"),
    ]


def _flush(paths: Iterable[pathlib.Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def _many_files(base: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder as the adapter leaves it; the files are empty, since only names and sizes are read."""
    for shard in range(NUM_SHARDS):
        (base / os.fsdecode(shard_name(shard))).mkdir(parents=True)
    for number in range(NUM_INDEXED):
        key = _key(number)
        os.mknod(os.path.join(os.fsencode(base), shard_name(key.chunk_hash[0]), file_name(key)), stat.S_IFREG | 0o600)
    try:
        yield base
    finally:
        shutil.rmtree(base)


def _index_rows(base: pathlib.Path) -> list[Row]:
    with _many_files(base):
        _flush(base.iterdir())  # a million new files keep the disk busy for a while
        command = [sys.executable, "-c", "from benchmarks.fs import open_index; open_index()", str(base)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if found["count"] != NUM_INDEXED:
        raise RuntimeError(f"{found['count']} objects were found")
    took_s, added_mib = found["seconds"], found["added_bytes"] / MIB
    return [
        Row(f"index of {NUM_INDEXED:,} objects", f"{took_s:.1f} s", f"<= {INDEX_SECONDS_MAX:g} s",
            took_s <= INDEX_SECONDS_MAX),
        Row("memory it adds", f"{added_mib:.0f} MiB", f"<= {INDEX_MIB_MAX} MiB", added_mib <= INDEX_MIB_MAX),
    ]  # fmt: skip


def open_index() -> None:
    """In a process of its own: open the folder that the command line names, and print what that took."""
    adapter = make(Config(sys.argv[1]), AdapterContext("fs"))
    before_bytes = resident_bytes(os.getpid())
    begun_s = time.perf_counter()
    adapter.open()
    took_s = time.perf_counter() - begun_s
    added_bytes = resident_bytes(os.getpid()) - before_bytes
    print(json.dumps({"count": adapter.num_objects, "seconds": took_s, "added_bytes": added_bytes}))
    adapter.close()


def main() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-") as folder:
        base = pathlib.Path(folder)
        rows = _transfer_rows(base) + _index_rows(base / "index")
    print_rows(f"fs: {NUM_OBJECTS} objects of 16 MiB, {NUM_THREADS} threads, page cache warm", rows)
    return rows
