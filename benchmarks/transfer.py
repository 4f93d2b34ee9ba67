"""Store and retrieve of 8K-token requests through a real server, against one memmove of the same bytes."""

from __future__ import annotations

import secrets
import time

import numpy as np

from benchmarks.common import BLOCK_TOKENS, CHUNK_TOKENS, Row, SyntheticEngine, join_engine, median, print_rows, server
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, StoreJob, StoreOutcome

REQUEST_TOKENS = 8192
ROUNDS = 9
WARM_UP = 3


def main() -> None:
    for bytes_per_token in (131072, 12288):
        request_bytes = REQUEST_TOKENS * bytes_per_token
        # Room for two and a half requests: stores beyond that evict, as in service.
        with server(2.5 * request_bytes / (1 << 30)) as running:
            engine = join_engine(running.port, bytes_per_token, REQUEST_TOKENS)
            try:
                rows = _measure(engine, request_bytes)
            finally:
                engine.close()
        print_rows(f"transfer, {bytes_per_token} B a token, {REQUEST_TOKENS} tokens, 1 copying thread", rows)


def _measure(engine: SyntheticEngine, request_bytes: int) -> list[Row]:
    source, target = np.ones(request_bytes, np.uint8), np.ones(request_bytes, np.uint8)
    moves, stores, loads = [], [], []
    for number in range(WARM_UP + ROUNDS):
        begun = time.perf_counter()
        np.copyto(target, source)
        moves.append(time.perf_counter() - begun)
        store_s, load_s = _store_and_load(engine, number)
        stores.append(store_s)
        loads.append(load_s)
    moves, stores, loads = moves[WARM_UP:], stores[WARM_UP:], loads[WARM_UP:]
    store = median([move / took for move, took in zip(moves, stores, strict=True)])
    load = median([move / took for move, took in zip(moves, loads, strict=True)])
    return [
        Row("memmove", f"{request_bytes / median(moves) / 1e9:.1f} GB/s"),
        Row("store: reserve, copy, commit", f"{store:.2f} of memmove", ">= 0.85", store >= 0.85),
        Row("retrieve: check, copy, check", f"{load:.2f} of memmove", ">= 0.80", load >= 0.80),
    ]


def _store_and_load(engine: SyntheticEngine, number: int) -> tuple[float, float]:
    per_chunk = CHUNK_TOKENS // BLOCK_TOKENS
    num_chunks = REQUEST_TOKENS // CHUNK_TOKENS
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
    engine.lookups.end(request_id, promise.boot_id)
    return store_s, load_s


if __name__ == "__main__":
    main()
