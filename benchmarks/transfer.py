"""Store and retrieve of 8K-token requests through a real server, against one memmove of the same bytes.

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

from benchmarks.common import CHUNK_TOKENS, Row, SyntheticEngine, join_engine, median, print_rows, server
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, StoreJob, StoreOutcome

REQUEST_TOKENS = 8192
# Bytes of KV a token, layers.
SIZES = ((131072, 32), (12288, 12))
BLOCK_SIZES = (128, 16)
PAGE_BYTES = 4096
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
    moves, stores, loads = [], [], []
    for number in range(warm_up + rounds):
        start = int(np.random.default_rng(number).integers(0, request_bytes // PAGE_BYTES)) * PAGE_BYTES
        part = slice(start, start + request_bytes)
        begun = time.perf_counter()
        np.copyto(target[part], source[part])
        moves.append(time.perf_counter() - begun)
        store_s, load_s = _store_and_load(engine, number, request_tokens // CHUNK_TOKENS, CHUNK_TOKENS // block_tokens)
        stores.append(store_s)
        loads.append(load_s)
    moves, stores, loads = moves[warm_up:], stores[warm_up:], loads[warm_up:]
    store = median([move / took for move, took in zip(moves, stores, strict=True)])
    load = median([move / took for move, took in zip(moves, loads, strict=True)])
    has_target = block_tokens == BLOCK_SIZES[0]
    return [
        Row("memmove, one thread", f"{request_bytes / median(moves) / 1e9:.1f} GB/s"),
        _row("store: reserve, copy, commit", store, 0.85, has_target),
        _row("retrieve: check, copy, check", load, 0.80, has_target),
    ]


def _row(name: str, ratio: float, target: float, has_target: bool) -> Row:
    value = f"{ratio:.2f} of memmove"
    return Row(name, value, f">= {target:.2f}", ratio >= target) if has_target else Row(name, value)


def _store_and_load(engine: SyntheticEngine, number: int, num_chunks: int, per_chunk: int) -> tuple[float, float]:
    digests = tuple(secrets.token_bytes(32) for _ in range(num_chunks))
    ids = np.random.default_rng(number).permutation(engine.pages.shape[1])[: num_chunks * per_chunk]
    blocks = tuple(tuple(ids[i * per_chunk : (i + 1) * per_chunk].tolist()) for i in range(num_chunks))
    begun = time.perf_counter()
    engine.worker.submit_store(StoreJob(number, engine.root, "", digests, blocks))
    while not (stored := engine.worker.take_finished()[0]):
        time.sleep(0.0001)
    store_s = time.perf_counter() - begun
    if stored[0].outcome is not StoreOutcome.STORED or len(stored[0].stored) != num_chunks:
        raise RuntimeError(f"the store ended as {stored[0].outcome}")
    request_id = f"request-{number}"
    while (promise := engine.lookups.lookup(request_id, "", digests, 0.05)) is None or not promise.chunks:
        time.sleep(0.001)
    chunks = tuple(LoadChunk(places, 0, ids) for places, ids in zip(promise.chunks, blocks, strict=True))
    begun = time.perf_counter()
    engine.worker.submit_load(LoadJob(request_id, promise.pool_id, chunks))
    while not (loaded := engine.worker.take_finished()[1]):
        time.sleep(0.0001)
    load_s = time.perf_counter() - begun
    if not loaded[0].is_ok:
        raise RuntimeError(f"the load failed: {loaded[0].error}")
    engine.lookups.release(request_id, promise, 0)
    engine.lookups.end(request_id, promise.boot_id)
    return store_s, load_s


if __name__ == "__main__":
    main()
