"""The locking lookup of a cached prompt, from token list to answer, against one hash pass over it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from benchmarks.common import CHUNK_TOKENS, Row, SyntheticEngine, join_engine, median, print_rows, server
from lmcache.core.hashing import PrefixChain, chunk_digests, make_algorithm
from lmcache.integration.mp.jobs import StoreJob

SIZES = (8192, 131072)
ROUNDS = 200
# Objects as small as they get: only their number counts here.
BYTES_PER_TOKEN = 2048


def main(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> list[Row]:
    """The first size is held against a time, the others against a hash pass over their tokens."""
    room_bytes = 2 * sum(sizes) * BYTES_PER_TOKEN
    with server(max(0.125, room_bytes / (1 << 30))) as running:
        engine = join_engine(running.port, BYTES_PER_TOKEN, 2048)
        try:
            rows = [row for size in sizes for row in _rows(engine, size, rounds, size == sizes[0])]
        finally:
            engine.close()
    print_rows("locking lookup, token list to answer, p50", rows)
    return rows


def _rows(engine: SyntheticEngine, num_tokens: int, rounds: int, is_first: bool) -> list[Row]:
    tokens = [random.randrange(1 << 17) for _ in range(num_tokens)]
    algorithm = make_algorithm("blake3")
    store_chunks(engine, chunk_digests(algorithm, engine.root, tokens, CHUNK_TOKENS))
    passes, lookups = [], []
    for number in range(rounds):
        begun = time.perf_counter()
        chunk_digests(algorithm, engine.root, tokens, CHUNK_TOKENS)
        passes.append(time.perf_counter() - begun)
        lookups.append(timed_lookup(engine, tokens, f"lookup-{num_tokens}-{number}"))
    hash_ms, lookup_ms = median(passes) * 1000, median(lookups) * 1000
    name = f"{num_tokens // 1024}K tokens"
    if is_first:
        return [Row(name, f"{lookup_ms:.2f} ms (hash pass {hash_ms:.2f})", "<= 0.7 ms", lookup_ms <= 0.7)]
    ratio = median([took / one for took, one in zip(lookups, passes, strict=True)])
    return [Row(name, f"{lookup_ms:.2f} ms = {ratio:.2f} hash passes", "<= 3 hash passes", ratio <= 3)]


def timed_lookup(engine: SyntheticEngine, tokens: list[int], request_id: str) -> float:
    begun = time.perf_counter()
    chain = PrefixChain(make_algorithm("blake3"), engine.root, CHUNK_TOKENS)
    chain.extend(tokens)
    while (promise := engine.lookups.lookup(request_id, "", chain.digests, 1.0)) is None:
        pass
    took = time.perf_counter() - begun
    if len(promise.chunks) != len(tokens) // CHUNK_TOKENS:
        raise RuntimeError(f"{len(promise.chunks)} of {len(tokens) // CHUNK_TOKENS} chunks were found")
    engine.lookups.release(request_id, promise, 0)
    engine.lookups.end(request_id, promise.boot_id)
    return took


def store_chunks(engine: SyntheticEngine, digests: list[bytes]) -> None:
    blocks = tuple(range(CHUNK_TOKENS // 16))
    engine.worker.submit_store(StoreJob(1, engine.root, "", tuple(digests), (blocks,) * len(digests)))
    while not engine.worker.take_finished()[0]:
        time.sleep(0.001)


if __name__ == "__main__":
    main()
