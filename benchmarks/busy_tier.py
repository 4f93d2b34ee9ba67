"""The locking lookup of a prompt in L1 while a file tier writes as fast as it can, against the same when it rests.

A burst of stores leaves the tier with seconds of work; the lookups of one engine are timed while
`/status` says that it has some left, and again when it has none, in turns.
"""

from __future__ import annotations

import pathlib
import random
import secrets
import tempfile
import time

from benchmarks.common import CHUNK_TOKENS, Row, RunningServer, SyntheticEngine, join_engine, median, print_rows, server
from benchmarks.lookup import store_chunks, timed_lookup
from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.integration.mp.jobs import StoreJob

PROMPT_TOKENS = 8192
BYTES_PER_TOKEN = 32768
BURST_CHUNKS = 192
LOOKUPS = 60
ROUNDS = 7


def main(
    rounds: int = ROUNDS,
    num_lookups: int = LOOKUPS,
    burst_chunks: int = BURST_CHUNKS,
    prompt_tokens: int = PROMPT_TOKENS,
) -> list[Row]:
    """Files go to the current folder's disk: a tmpfs would measure memory twice."""
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-", dir=pathlib.Path.cwd()) as folder:
        adapter = f'{{"type": "fs", "base_path": "{folder}", "max_capacity_gb": 4}}'
        gib = 2 * (burst_chunks * CHUNK_TOKENS + prompt_tokens) * BYTES_PER_TOKEN / (1 << 30)
        with server(gib, "--l2-adapter", adapter) as running:
            engine = join_engine(running.port, BYTES_PER_TOKEN, 2048)
            try:
                rows = _measure(running, engine, rounds, num_lookups, burst_chunks, prompt_tokens)
            finally:
                engine.close()
    print_rows(f"lookup of {prompt_tokens // 1024}K tokens in L1 beside a busy file tier", rows)
    return rows


def _measure(
    running: RunningServer,
    engine: SyntheticEngine,
    rounds: int,
    num_lookups: int,
    burst_chunks: int,
    prompt_tokens: int,
) -> list[Row]:
    while running.status()["storage_manager"]["l1_manager"]["is_populating"]:
        time.sleep(0.05)  # until then the pool is smaller, and a burst would evict the prompt
    tokens = [random.randrange(1 << 17) for _ in range(prompt_tokens)]
    store_chunks(engine, chunk_digests(make_algorithm("blake3"), engine.root, tokens, CHUNK_TOKENS))
    _wait_until_idle(running)
    at_rest, busy = [], []
    for number in range(rounds):
        at_rest.append(_lookups(engine, tokens, f"rest-{number}", num_lookups))
        _burst(engine, number, burst_chunks)
        took = _lookups(engine, tokens, f"busy-{number}", num_lookups)
        if not _pending(running):
            raise RuntimeError("the tier was done before the lookups were: raise burst_chunks")
        busy.append(took)
        _wait_until_idle(running)
    ratio = median([one / other for one, other in zip(busy, at_rest, strict=True)])
    value = f"{median(busy) * 1000:.2f} ms = {ratio:.2f}x ({median(at_rest) * 1000:.2f} at rest)"
    return [Row("p50 while the tier writes", value, "<= 1.2x", ratio <= 1.2)]


def _lookups(engine: SyntheticEngine, tokens: list[int], name: str, num_lookups: int) -> float:
    return median([timed_lookup(engine, tokens, f"{name}-{number}") for number in range(num_lookups)])


def _burst(engine: SyntheticEngine, number: int, num_chunks: int) -> None:
    blocks = tuple(range(CHUNK_TOKENS // 16))
    digests = tuple(secrets.token_bytes(32) for _ in range(num_chunks))
    engine.worker.submit_store(StoreJob(1000 + number, engine.root, "", digests, (blocks,) * num_chunks))
    while not engine.worker.take_finished()[0]:
        time.sleep(0.0005)


def _pending(running: RunningServer) -> int:
    controller = running.status()["storage_manager"]["store_controller"]
    return int(controller["pending_keys_count"]) + int(controller["in_flight_task_count"])


def _wait_until_idle(running: RunningServer) -> None:
    while _pending(running):
        time.sleep(0.02)


if __name__ == "__main__":
    main()
