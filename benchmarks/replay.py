"""A trace replayed through a real server, per eviction policy and size of L1, against the pure simulation of both.

`python -m benchmarks.replay --trace FILE` replays another trace than the one that the tests keep, which is one
conversation in twelve of Mooncake's. A block of the trace is a chunk here; its form is that of `benchmarks.policies`.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from collections import deque
from collections.abc import Sequence

from benchmarks.common import CHUNK_TOKENS, Row, RunningServer, SyntheticEngine, join_engine, print_rows, server
from benchmarks.policies import Replay, Request, hit_rate, num_unique, read_trace
from lmcache.integration.mp.jobs import StoreJob

TRACE = pathlib.Path(__file__).parents[1] / "tests" / "eviction" / "conversations.jsonl.gz"
POLICIES = ("LRU", "IsolatedLRU", "ARC", "S3-FIFO")
SHARES = (0.05, 0.10, 0.20)
DIFFERENCE_MAX = 0.01
# Chunks of 32 KiB: of smaller ones a pool may run out of records before it is full.
BYTES_PER_TOKEN = 128
_CHUNK_BYTES = CHUNK_TOKENS * BYTES_PER_TOKEN
_LOOKUP_S = 30.0
# As the worker of an engine stores (integration/mp/store_pipeline.py).
_FIRST_BATCH_CHUNKS = 2
_BATCH_CHUNKS_MAX = 16
_RESERVES_AHEAD = 2


class BatchedReplay(Replay):
    """Stores as an engine's worker does: in batches that double, some of them reserved ahead of the next commit."""

    def _store(self, blocks: Request, tenant: str) -> None:
        reserved: deque[list[int]] = deque()
        start, size = 0, _FIRST_BATCH_CHUNKS
        while start < len(blocks):
            reserved.append(self._reserve(blocks[start : start + size]))
            start, size = start + size, min(2 * size, _BATCH_CHUNKS_MAX)
            if len(reserved) > _RESERVES_AHEAD:
                self._commit(reserved.popleft(), tenant)
        while reserved:
            self._commit(reserved.popleft(), tenant)


class ReplayingEngine:
    """Asks as a scheduler does: lock the hit, let go of it, store the rest, end."""

    def __init__(self, engine: SyntheticEngine, running: RunningServer) -> None:
        self._engine = engine
        self._running = running
        self._blocks = tuple(range(engine.layout.blocks_per_chunk(CHUNK_TOKENS)))
        self._number = 0
        self.num_asked = 0
        self.num_hit = 0

    def ask(self, request: Request) -> None:
        self._number += 1
        lookups, name = self._engine.lookups, f"replay-{self._number}"
        digests = [block.to_bytes(32, "little") for block in request]
        while (promise := lookups.lookup(name, "", digests, _LOOKUP_S)) is None:
            pass
        self.num_asked += len(digests)
        self.num_hit += len(promise.chunks)
        lookups.release(name, promise, 0)
        self._store(digests[len(promise.chunks) :])
        lookups.end(name, promise.boot_id)
        # An end is told in the background, and what is in use until then is decided by when that is. A trace's next
        # request comes seconds later.
        while self._running.status()["active_sessions"]:
            time.sleep(0.0005)

    def _store(self, digests: list[bytes]) -> None:
        if not digests:
            return
        job = StoreJob(self._number, self._engine.root, "", tuple(digests), (self._blocks,) * len(digests))
        self._engine.worker.submit_store(job)
        while not self._engine.worker.take_finished()[0]:
            time.sleep(0.0002)


def main(
    trace: pathlib.Path = TRACE,
    shares: Sequence[float] = SHARES,
    policies: Sequence[str] = POLICIES,
    num_requests: int | None = None,
) -> list[Row]:
    """`num_requests`: only so many of the first ones."""
    requests = read_trace(trace)[:num_requests]
    num_blocks = num_unique(requests)
    rows = []
    for share in shares:
        num_slots = int(num_blocks * share)
        for name in policies:
            simulated = hit_rate(name, requests, num_slots, BatchedReplay)
            rows.append(_row(f"{name}, {share:.0%}", _measured(requests, num_slots, name), simulated))
    print_rows(f"prefix blocks found, of {len(requests):,} requests with {num_blocks:,} different blocks", rows)
    return rows


def _row(name: str, measured: float, simulated: float) -> Row:
    difference = measured / simulated - 1 if simulated else math.inf if measured else 0.0
    value = f"{measured:.4f}, simulated {simulated:.4f} = {difference:+.2%}"
    return Row(name, value, f"within {DIFFERENCE_MAX:.0%}", abs(difference) <= DIFFERENCE_MAX)


def _measured(requests: Sequence[Request], num_slots: int, policy: str) -> float:
    gib = num_slots * _CHUNK_BYTES / (1 << 30)
    with server(gib, "--eviction-policy", policy, "--default-quota-gb", str(gib)) as running:
        _wait_until_populated(running)
        engine = join_engine(running.port, BYTES_PER_TOKEN, CHUNK_TOKENS, layers=1)
        try:
            replaying = ReplayingEngine(engine, running)
            for request in requests:
                replaying.ask(request)
        finally:
            engine.close()
    return replaying.num_hit / replaying.num_asked


def _wait_until_populated(running: RunningServer) -> None:
    while running.status()["storage_manager"]["l1_manager"]["is_populating"]:
        time.sleep(0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=pathlib.Path, default=TRACE, help="of Mooncake's form, maybe gzipped")
    parser.add_argument("--share", type=float, action="append", help="size of L1 as a share of all blocks")
    parser.add_argument("--requests", type=int, help="only so many of the first ones")
    given = parser.parse_args()
    main(given.trace, given.share or SHARES, num_requests=given.requests)
