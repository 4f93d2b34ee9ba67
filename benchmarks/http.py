"""The HTTP API: what a call costs, and what a client that never stops calling costs the data path.

One keep-alive client measures latencies. The lookups are those of an engine, 8K tokens each,
first alone, then beside a process that asks for /status and /metrics without a pause. Last, probes beside what
operators ask of a server with a million objects.
"""

from __future__ import annotations

import http.client
import random
import secrets
import subprocess
import sys
import time

from benchmarks.common import CHUNK_TOKENS, Row, RunningServer, SyntheticEngine, join_engine, median, print_rows, server
from benchmarks.http_crowd import NUM_OBJECTS, STATUS_S, probe_rows
from benchmarks.lookup import store_chunks, timed_lookup
from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.integration.mp.jobs import StoreJob

NUM_SALTS = 400
CALLS = 1000
LOOKUPS = 2000
PROMPT_TOKENS = 8192
BYTES_PER_TOKEN = 2048
ROUNDS = 5

_HAMMER = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
while True:
    for path in ("/status", "/metrics"):
        connection.request("GET", path)
        connection.getresponse().read()
"""


def main(
    num_calls: int = CALLS,
    num_lookups: int = LOOKUPS,
    num_salts: int = NUM_SALTS,
    rounds: int = ROUNDS,
    num_objects: int = NUM_OBJECTS,
    status_s: float = STATUS_S,
) -> list[Row]:
    with server(0.5) as running:
        engine = join_engine(running.port, BYTES_PER_TOKEN, 2048)
        try:
            rows = _latencies(running, engine, num_calls, num_salts)
            rows.append(_beside_http(running, engine, num_lookups, rounds))
        finally:
            engine.close()
    rows += probe_rows(num_objects, status_s)
    print_rows("HTTP API, one keep-alive client", rows)
    return rows


def _latencies(running: RunningServer, engine: SyntheticEngine, num_calls: int, num_salts: int) -> list[Row]:
    for number in range(num_salts):
        _store_and_find(engine, number)
    connection = http.client.HTTPConnection("127.0.0.1", running.http_port, timeout=10)
    health_ms = [_call(connection, "/healthcheck")[0] for _ in range(num_calls)]
    time.sleep(1.1)  # a rendering is good for a second: the first call makes a new one
    first_ms, body = _call(connection, "/metrics")
    metrics_ms = [_call(connection, "/metrics")[0] for _ in range(num_calls)]
    status_ms = [_call(connection, "/status")[0] for _ in range(num_calls // 10)]
    connection.close()
    num_series = sum(not line.startswith(b"#") for line in body.splitlines())
    health, metrics = median(health_ms), median(metrics_ms)
    return [
        Row("GET /healthcheck, p50", f"{health:.2f} ms", "<= 0.7 ms", health <= 0.7),
        Row(
            f"GET /metrics, {num_series} series, p50",
            f"{metrics:.2f} ms (anew {first_ms:.1f})",
            "<= 15 ms",
            metrics <= 15,
        ),
        Row("GET /status, p50", f"{median(status_ms):.2f} ms"),
    ]


def _store_and_find(engine: SyntheticEngine, number: int) -> None:
    """One chunk of one tenant: a series in each of five families."""
    tenant, digest = f"tenant-{number}", secrets.token_bytes(32)
    blocks = tuple(range(CHUNK_TOKENS // 16))
    engine.worker.submit_store(StoreJob(10_000 + number, engine.root, tenant, (digest,), (blocks,)))
    while not engine.worker.take_finished()[0]:
        time.sleep(0.0002)
    while (promise := engine.lookups.lookup(tenant, tenant, [digest], 1.0)) is None:
        pass
    engine.lookups.end(tenant, promise.boot_id)


def _call(connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
    """Milliseconds, and the body."""
    begun = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    took_ms = (time.perf_counter() - begun) * 1000
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}")
    return took_ms, body


def _beside_http(running: RunningServer, engine: SyntheticEngine, num_lookups: int, rounds: int) -> Row:
    """Medians over rounds of the p99s, alone and beside the calls, in turns."""
    tokens = [random.randrange(1 << 17) for _ in range(PROMPT_TOKENS)]
    store_chunks(engine, chunk_digests(make_algorithm("blake3"), engine.root, tokens, CHUNK_TOKENS))
    alone, beside = [], []
    for number in range(rounds):
        alone.append(_p99_ms(engine, tokens, f"alone-{number}", num_lookups // rounds))
        hammer = subprocess.Popen([sys.executable, "-c", _HAMMER, str(running.http_port)])
        try:
            time.sleep(0.3)
            beside.append(_p99_ms(engine, tokens, f"beside-{number}", num_lookups // rounds))
        finally:
            hammer.kill()
            hammer.wait()
    added_ms = median(beside) - median(alone)
    value = f"{median(alone):.2f} + {added_ms:.2f} ms"
    return Row("lookup p99 beside /status and /metrics", value, "<= alone + 2 ms", added_ms <= 2)


def _p99_ms(engine: SyntheticEngine, tokens: list[int], name: str, num_lookups: int) -> float:
    took = sorted(timed_lookup(engine, tokens, f"{name}-{number}") for number in range(num_lookups))
    return took[int(0.99 * (len(took) - 1))] * 1000


if __name__ == "__main__":
    main()
