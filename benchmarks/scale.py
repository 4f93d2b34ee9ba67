"""A million objects against ten thousand: store, lookup, eviction; and recovery of a million records."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable

from benchmarks.common import SHARED_MEMORY, Row, median, print_rows
from lmcache.engine.pool import Pool, PoolConfig
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.memory.pool_files import Geometry
from lmcache.protocol.blobs import split_places

FOLDER = SHARED_MEMORY / f"lmcache-bench-scale-{os.getpid()}"
OBJECT_BYTES = 4096
KEY = NamespaceKey("scale", bytes(32), "")
RANK = (1 << 24 | 1 << 8, 0)
OWNER = 1
ROUNDS = 2000
LOOKUP_CHUNKS = 32


def main(num_few: int = 10_000, num_many: int = 1_000_000, rounds: int = ROUNDS) -> list[Row]:
    small, _ = _measure(num_few, rounds)
    large, recovery_s = _measure(num_many, rounds)
    rows = []
    for name, few in small.items():
        many = large[name]
        rows.append(Row(name, f"{few:.1f} -> {many:.1f} us = {many / few:.2f}x", "<= 1.5x", many / few <= 1.5))
    rows.append(Row(f"recovery of {num_many:,} records", f"{recovery_s:.2f} s", "<= 3 s", recovery_s <= 3))
    print_rows(f"{num_few:,} -> {num_many:,} objects", rows)
    return rows


def _measure(num_objects: int, rounds: int) -> tuple[dict[str, float], float]:
    """Medians in microseconds, and seconds to recover. The pool has room for exactly `num_objects`."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    config = PoolConfig(FOLDER, Geometry(num_objects * OBJECT_BYTES, num_objects + 64), keep=True)
    pool = Pool(config)
    try:
        pool.wait_until_populated(600)
        digests = fill_pool(pool, num_objects - rounds)
        result = {
            "reserve + commit": _timed(rounds, lambda number: _store(pool, [_digest(number)])),
            f"lookup of {LOOKUP_CHUNKS} chunks": _timed(rounds, lambda number: _lookup(pool, digests, number)),
            "reserve + commit that evicts": _timed(rounds, lambda number: _store(pool, [_digest(rounds + number)])),
        }
        pool.l1.check_allocator()
        pool.close()
        begun = time.perf_counter()
        pool = Pool(config)
        recovery_s = time.perf_counter() - begun
        if pool.recovery.num_ready != num_objects:
            raise RuntimeError(f"{pool.recovery.num_ready} of {num_objects} objects came back")
        return result, recovery_s
    finally:
        pool.close(keep=False)


def _digest(number: int) -> bytes:
    return b"new" + number.to_bytes(29, "big")


def fill_pool(pool: Pool, num_objects: int) -> list[bytes]:
    digests = [secrets.token_bytes(32) for _ in range(num_objects)]
    for start in range(0, num_objects, 1024):
        _store(pool, digests[start : start + 1024])
    return digests


def _store(pool: Pool, digests: list[bytes]) -> None:
    reserved = pool.l1.reserve(KEY, RANK, OWNER, digests, OBJECT_BYTES)
    places = [Place(slot, word) for slot, word, _, _ in split_places(pool.l1.places(reserved.slots))]
    if len(pool.l1.commit(OWNER, places)) != len(digests):
        raise RuntimeError("a commit was refused")


def _lookup(pool: Pool, digests: list[bytes], number: int) -> None:
    start = number * 7919 % (len(digests) - LOOKUP_CHUNKS)
    slots, places = pool.l1.lookup(KEY, [RANK], digests[start : start + LOOKUP_CHUNKS], LockBudget(1 << 40))
    if len(slots) != LOOKUP_CHUNKS:
        raise RuntimeError(f"{len(slots)} of {LOOKUP_CHUNKS} chunks were found")
    pool.l1.unlock([Place(slot, word) for slot, word, _, _ in split_places(places)])


def _timed(rounds: int, action: Callable[[int], None]) -> float:
    times = []
    for number in range(rounds):
        begun = time.perf_counter()
        action(number)
        times.append((time.perf_counter() - begun) * 1e6)
    return median(times)


if __name__ == "__main__":
    main()
