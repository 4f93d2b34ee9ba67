"""What the benchmarks share: a real server in a process of its own, synthetic clients, medians, a table."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
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

import msgspec
import numpy as np

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.lookups import LookupClient
from lmcache.integration.mp.membership import Joined, Membership, MembershipConfig
from lmcache.integration.mp.worker import TransferConfig, TransferWorker
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots

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
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/status", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def wait_for_clients(self, num_clients: int, timeout_s: float = 30.0) -> None:
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


def start_server(l1_gib: float, *flags: str, port: int | None = None, name: str | None = None) -> RunningServer:
    """`lmcache server`, as a user starts it; returns at its first 200 on /healthcheck."""
    port, http_port = port or free_port(), free_port()
    name = name or f"bench-{os.getpid()}-{port}"
    command = [
        sys.executable, "-m", "lmcache", "server", "--port", str(port), "--http-port", str(http_port),
        "--l1-size-gb", str(l1_gib), "--shm-name", name, *flags,
    ]  # fmt: skip
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


@dataclass
class SyntheticEngine:
    """One rank and its scheduler over plain memory: what an engine does, without the model."""

    pages: np.ndarray
    worker: TransferWorker
    lookups: LookupClient
    members: tuple[Membership, Membership]
    joined: Joined

    @property
    def root(self) -> bytes:
        return self.joined.registered.root

    def close(self) -> None:
        self.worker.stop()
        self.lookups.close()
        for member in self.members:
            member.stop()


def join_engine(
    port: int,
    bytes_per_token: int,
    num_tokens: int,
    num_threads: int = 1,
    layers: int = 32,
    block_tokens: int = BLOCK_TOKENS,
) -> SyntheticEngine:
    """Layers of KV pages with room for twice `num_tokens`, joined to the server on `port`."""
    page = bytes_per_token * block_tokens // layers
    num_blocks = 2 * num_tokens // block_tokens
    pages = np.ones((layers, num_blocks, page), dtype=np.uint8)
    group = KernelGroup(
        tuple(f"layer.{i}" for i in range(layers)),
        page,
        "bfloat16",
        (num_blocks, 1, block_tokens, page // block_tokens),
    )
    layout = KVLayout(block_tokens, num_blocks, (group,), "LBHNC", "synthetic")
    ledger, engine_id = WriteLedger(), secrets.token_hex(8)
    config = MembershipConfig(f"tcp://127.0.0.1:{port}")

    def as_worker(welcome: m.Welcome, nonce: bytes) -> m.RegisterWorker:
        attempt, writing = ledger.snapshot_for_registration()
        blob = msgspec.json.encode(layout)
        return m.RegisterWorker(engine_id, "synthetic", 1, 0, blob, nonce, attempt, pack_slots(writing))

    def as_scheduler(welcome: m.Welcome, nonce: bytes) -> m.RegisterScheduler:
        return m.RegisterScheduler(engine_id, "synthetic", 1, json.dumps({"model": "synthetic"}).encode(), nonce)

    worker_member = Membership(config, secrets.randbits(63) | 1, "worker", as_worker, touches_pool=True)
    scheduler_member = Membership(config, secrets.randbits(63) | 1, "scheduler", as_scheduler)
    worker_member.start()
    scheduler_member.start()
    joined = scheduler_member.wait_until_joined(10)
    if joined is None or worker_member.wait_until_joined(10) is None:
        raise RuntimeError("the synthetic engine could not join the server")
    transfer = TransferWorker(
        TransferConfig(0, CHUNK_TOKENS // block_tokens, num_threads=num_threads),
        CpuCopier([pages]),
        worker_member,
        ledger,
    )
    transfer.start()
    return SyntheticEngine(
        pages, transfer, LookupClient(scheduler_member, 5.0), (worker_member, scheduler_member), joined
    )


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def resident_bytes(pid: int) -> int:
    """RssAnon + RssFile: what the process takes beside shared memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
    return found["RssAnon"] + found["RssFile"]
