"""What the benchmarks share: a real server in a process of its own, synthetic clients, medians, a table."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmcache.integration.synthetic.engine import SyntheticConfig, SyntheticEngine
from lmcache.integration.synthetic.shape import ModelShape

SHARED_MEMORY = pathlib.Path("/dev/shm")
CHUNK_TOKENS = 256
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One line of a result: what was measured, the value, what it is held against."""

    name: str
    value: str
    target: str = ""
    is_met: bool | None = None


def print_rows(title: str, rows: Sequence[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"\n{title}")
    for row in rows:
        mark = {None: "", True: "ok", False: "MISSED"}[row.is_met]
        print(f"  {row.name:<{width}}  {row.value:>28}  {row.target:>20}  {mark}".rstrip())
    sys.stdout.flush()


@contextlib.contextmanager
def children_kept_quiet() -> Iterator[None]:
    """What our children print goes to a file, and is shown if something breaks. Our own output goes on."""
    sys.stdout.flush()
    own = [os.dup(1), os.dup(2)]
    stdout, sys.stdout = sys.stdout, os.fdopen(own[0], "w", closefd=False)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception:
            log.seek(0)
            os.write(own[1], log.read())
            raise
        finally:
            sys.stdout.flush()
            sys.stdout = stdout
            for number, descriptor in enumerate(own, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def interrupt_once() -> None:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt; no other one disturbs what cleans up then."""

    def raise_interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, raise_interrupt)
    signal.signal(signal.SIGTERM, raise_interrupt)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class RunningServer:
    """A `lmcache server` and the pool that it or its next start on the same name uses."""

    process: subprocess.Popen[bytes]
    port: int
    http_port: int
    pool_folder: pathlib.Path
    seconds_to_first_200: float

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/status", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def wait_for_clients(self, num_clients: int, timeout_s: float = 60.0) -> None:
        """Until so many schedulers and workers are registered."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.status().get("worker_liveness", {}).get("tracked_instances", 0) >= num_clients:
                return
            time.sleep(0.05)
        raise RuntimeError(f"{num_clients} clients did not register with the server")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it, and leave no pool behind whatever happened to it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.pool_folder, ignore_errors=True)


def start_server(l1_gib: float | None, *flags: str, port: int | None = None, name: str | None = None) -> RunningServer:
    """`lmcache server`, as a user starts it; returns at its first 200 on /healthcheck. Without a size, it takes what
    lies there under its name."""
    port, http_port = port or free_port(), free_port()
    name = name or f"bench-{os.getpid()}-{port}"
    command = [
        sys.executable, "-m", "lmcache", "server", "--port", str(port), "--http-port", str(http_port),
        "--shm-name", name, *flags,
    ]  # fmt: skip
    if l1_gib is not None:
        command += ["--l1-size-gb", str(l1_gib)]
    with tempfile.TemporaryFile() as errors:
        begun_s = time.perf_counter()
        # In our process group: what ends us from outside ends it too.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        running = RunningServer(process, port, http_port, SHARED_MEMORY / f"lmcache-{name}", 0.0)
        try:
            _wait_until_healthy(running)
        except BaseException:
            running.stop()
            errors.seek(0)
            sys.stderr.write(errors.read().decode(errors="replace"))
            raise
        running.seconds_to_first_200 = time.perf_counter() - begun_s
    return running


def _wait_until_healthy(running: RunningServer) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.http_port}/healthcheck", timeout=1):
                return
        except OSError:
            if running.process.poll() is not None:
                raise RuntimeError(f"the server ended with {running.process.returncode}") from None
            time.sleep(0.002)


@contextlib.contextmanager
def server(l1_gib: float, *flags: str) -> Iterator[RunningServer]:
    running = start_server(l1_gib, *flags)
    try:
        yield running
    finally:
        running.stop()


def join_engine(
    port: int,
    bytes_per_token: int,
    num_tokens: int,
    num_threads: int = 1,
    layers: int = 32,
    block_tokens: int = BLOCK_TOKENS,
) -> SyntheticEngine:
    """Layers of KV pages with room for twice `num_tokens`, joined to the server on `port`."""
    key_elements = bytes_per_token // layers // 4  # a key and a value of two bytes an element
    config = SyntheticConfig(
        f"tcp://127.0.0.1:{port}",
        ModelShape(layers, 1, key_elements),
        block_tokens,
        2 * num_tokens // block_tokens,
        num_threads=num_threads,
    )
    engine = SyntheticEngine(config)
    engine.join()
    return engine


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def alternating_pairs(
    ours: Callable[[], None], other: Callable[[], None], prepare: Callable[[], None], num_pairs: int
) -> list[tuple[float, float]]:
    """Seconds of both, who goes first in turn; the first pair warms up and does not count."""
    found = []
    for number in range(num_pairs + 1):
        prepare()
        if number % 2:
            other_s, ours_s = seconds(other), seconds(ours)
        else:
            ours_s, other_s = seconds(ours), seconds(other)
        found.append((ours_s, other_s))
    return found[1:]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def resident_bytes(pid: int) -> int:
    """RssAnon + RssFile: what the process takes beside shared memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
    return found["RssAnon"] + found["RssFile"]
