"""Whether a probe is answered in time while operators ask a server with a million objects for a lot."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.common import SHARED_MEMORY, Row, RunningServer, start_server
from benchmarks.scale import OBJECT_BYTES, fill_pool
from lmcache.engine.pool import Pool, PoolConfig
from lmcache.memory.pool_files import Geometry

NUM_OBJECTS = 1_000_000
# After which Kubernetes takes a probe for failed.
_PROBE_MS_MAX = 1000.0
STATUS_S = 3.0
_PROBE_PAUSE_S = 0.005

# A client in a process of its own. It says how many objects its answers told of.
_LISTING = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=300)
token, count = "", 0
while token is not None:
    connection.request("GET", "/cache/objects?tier=l1&page_size=5000&page_token=" + token)
    page = json.loads(connection.getresponse().read())
    token, count = page["next_page_token"], count + len(page["entries"])
print(count)
"""
_STATUS = """
import http.client, json, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=300)
end_s = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end_s:
    connection.request("GET", "/status")
    status = json.loads(connection.getresponse().read())
print(status["storage_manager"]["l1_manager"]["total_object_count"])
"""
_CLEAR = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=300)
connection.request("POST", "/clear-cache")
answer = connection.getresponse()
answer.read()
connection.request("GET", "/status")
status = json.loads(connection.getresponse().read())
print(int(sys.argv[2]) - status["storage_manager"]["l1_manager"]["total_object_count"])
"""


def probe_rows(num_objects: int = NUM_OBJECTS, status_s: float = STATUS_S) -> list[Row]:
    with _crowded_server(num_objects) as running:
        acts = [
            ("a listing of all", _LISTING, ()),
            ("one /status after the other", _STATUS, (str(status_s),)),
            ("a clear", _CLEAR, (str(num_objects),)),
        ]
        return [_beside(running, num_objects, *act) for act in acts]


@contextlib.contextmanager
def _crowded_server(num_objects: int) -> Iterator[RunningServer]:
    """One that finds its pool full of objects, as after a restart."""
    name = f"bench-crowd-{os.getpid()}"
    folder = SHARED_MEMORY / f"lmcache-{name}"
    try:
        pool = Pool(PoolConfig(folder, Geometry(num_objects * OBJECT_BYTES, num_objects + 64), keep=True))
        try:
            pool.wait_until_populated(600)
            fill_pool(pool, num_objects)
        finally:
            pool.close()
        running = start_server(None, name=name)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(running: RunningServer, num_objects: int, what: str, client: str, arguments: tuple[str, ...]) -> Row:
    """The longest probe from the beginning of an act to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", running.http_port, timeout=60)
    longest_ms, begun_s = 0.0, time.perf_counter()
    command = [sys.executable, "-c", client, str(running.http_port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        is_over = False
        while not is_over:
            is_over = process.poll() is not None
            longest_ms = max(longest_ms, _probe_ms(connection))
            time.sleep(_PROBE_PAUSE_S)
        took_s = time.perf_counter() - begun_s
        assert process.stdout is not None
        said = process.stdout.read()
    connection.close()
    if process.returncode or int(said) != num_objects:
        raise RuntimeError(f"{what} told of {said.strip() or 'no'} objects, not of {num_objects}")
    return Row(
        f"longest /healthcheck beside {what}, {num_objects:,} objects",
        f"{longest_ms:.0f} ms ({took_s:.1f} s)",
        f"<= {_PROBE_MS_MAX:.0f} ms",
        longest_ms <= _PROBE_MS_MAX,
    )


def _probe_ms(connection: http.client.HTTPConnection) -> float:
    begun = time.perf_counter()
    connection.request("GET", "/healthcheck")
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"/healthcheck was answered with {answer.status}")
    return (time.perf_counter() - begun) * 1000
