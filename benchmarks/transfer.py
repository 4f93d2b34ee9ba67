"""Store and retrieve of 8K-token requests through a real server, against one memmove of the same bytes.

A store is timed from the moment the engine hands over computed pages until every chunk is
committed and reported. As our vLLM connector does, the engine announces it before the forward
pass, whose place a short sleep takes here: by then the first slots are reserved. The row "without
announcement" is a store that comes as a surprise. The engine's thread waits for the end instead of
polling, which on two cores would take time from the copying thread.

Blocks are in random order, the worst an engine can do. The targets hold for blocks of 128
tokens, vLLM's on CPU; with blocks of 16 the pages are so small that the processor, which
writes one large memmove past its caches, reaches less (and an engine that has just started
allocates neighbours, which is faster again).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from itertools import product

import numpy as np

from benchmarks.common import CHUNK_TOKENS, Row, SyntheticEngine, join_engine, median, print_rows, seconds, server
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, StoreJob, StoreOutcome

REQUEST_TOKENS = 8192
# Bytes of KV a token, layers.
SIZES = ((131072, 32), (12288, 12))
BLOCK_SIZES = (128, 16)
PAGE_BYTES = 4096
FORWARD_PASS_S = 0.01
WAIT_S = 1.0
ROUNDS = 9
WARM_UP = 3


def main(
    request_tokens: int = REQUEST_TOKENS,
    sizes: Sequence[tuple[int, int]] = SIZES,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
) -> list[Row]:
    """`sizes`: bytes of KV a token, and layers."""
    found = []
    for (bytes_per_token, layers), block_tokens in product(sizes, BLOCK_SIZES):
        request_bytes = request_tokens * bytes_per_token
        # Room for two and a half requests: stores beyond that evict, as in service.
        with server(2.5 * request_bytes / (1 << 30)) as running:
            engine = join_engine(
                running.port, bytes_per_token, request_tokens, layers=layers, block_tokens=block_tokens
            )
            try:
                rows = _measure(engine, block_tokens, request_tokens, rounds, warm_up)
            finally:
                engine.close()
        print_rows(f"transfer, {bytes_per_token} B a token, {request_tokens} tokens, blocks of {block_tokens}", rows)
        found += rows
    return found


def _measure(engine: SyntheticEngine, block_tokens: int, request_tokens: int, rounds: int, warm_up: int) -> list[Row]:
    request_bytes = engine.pages.nbytes // 2
    # As large as the engine's pages, and another part of them in each round: as cold as what we copy.
    source, target = np.ones(engine.pages.nbytes, np.uint8), np.ones(engine.pages.nbytes, np.uint8)
    found = []
    for number in range(warm_up + rounds):
        start = int(np.random.default_rng(number).integers(0, request_bytes // PAGE_BYTES)) * PAGE_BYTES
        part = slice(start, start + request_bytes)
        move_s = seconds(lambda part=part: np.copyto(target[part], source[part]))  # type: ignore[misc]
        surprise, announced = (
            _make_store(engine, 2 * number + nth, request_tokens // CHUNK_TOKENS, CHUNK_TOKENS // block_tokens)
            for nth in (0, 1)
        )
        surprise_s = _store(engine, surprise)
        engine.worker.announce_store(announced)
        time.sleep(FORWARD_PASS_S)
        found.append((move_s, surprise_s, _store(engine, announced), _load(engine, announced)))
    moves, *others = zip(*found[warm_up:], strict=True)
    sudden, store, load = (
        median([move_s / took_s for move_s, took_s in zip(moves, took, strict=True)]) for took in others
    )
    has_target = block_tokens == BLOCK_SIZES[0]
    return [
        Row("memmove, one thread", f"{request_bytes / median(moves) / 1e9:.1f} GB/s"),
        _row("store: reserve, copy, commit", store, 0.85, has_target),
        _row("store without announcement", sudden, 0.0, False),
        _row("retrieve: check, copy, check", load, 0.80, has_target),
    ]


def _row(name: str, ratio: float, target: float, has_target: bool) -> Row:
    value = f"{ratio:.2f} of memmove"
    return Row(name, value, f">= {target:.2f}", ratio >= target) if has_target else Row(name, value)


def _make_store(engine: SyntheticEngine, number: int, num_chunks: int, per_chunk: int) -> StoreJob:
    digests = tuple(secrets.token_bytes(32) for _ in range(num_chunks))
    ids = np.random.default_rng(number).permutation(engine.pages.shape[1])[: num_chunks * per_chunk]
    blocks = tuple(tuple(ids[i * per_chunk : (i + 1) * per_chunk].tolist()) for i in range(num_chunks))
    return StoreJob(number, engine.root, "", digests, blocks)


def _store(engine: SyntheticEngine, job: StoreJob) -> float:
    """Seconds it took."""
    begun = time.perf_counter()
    engine.worker.submit_store(job)
    while not (stored := engine.worker.take_finished()[0]):
        engine.worker.wait_for_any(WAIT_S)
    took_s = time.perf_counter() - begun
    if stored[0].outcome is not StoreOutcome.STORED or len(stored[0].stored) != len(job.digests):
        raise RuntimeError(f"the store ended as {stored[0].outcome}")
    return took_s


def _load(engine: SyntheticEngine, stored: StoreJob) -> float:
    """Seconds it took to load what was stored into the blocks it came from, the lookup not counted."""
    request_id = f"request-{stored.job_id}"
    while (promise := engine.lookups.lookup(request_id, "", stored.digests, 0.05)) is None or not promise.chunks:
        time.sleep(0.001)
    chunks = tuple(LoadChunk(places, 0, ids) for places, ids in zip(promise.chunks, stored.block_ids, strict=True))
    begun = time.perf_counter()
    engine.worker.submit_load(LoadJob(request_id, promise.pool_id, chunks))
    while not (loaded := engine.worker.take_finished()[1]):
        engine.worker.wait_for_any(WAIT_S)
    took_s = time.perf_counter() - begun
    if not loaded[0].is_ok:
        raise RuntimeError(f"the load failed: {loaded[0].error}")
    engine.lookups.release(request_id, promise, 0)
    engine.lookups.end(request_id, promise.boot_id)
    return took_s


if __name__ == "__main__":
    main()
