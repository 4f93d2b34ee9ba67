"""Real redis-server processes for tests: one alone, or masters that form a cluster."""

from __future__ import annotations

import functools
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lmcache.testing.ports import free_port

NUM_SLOTS = 16384
_NAMES = ("redis-server", "valkey-server")
_START_TIMEOUT_S = 30.0
# Of who does not test what becomes of a server that is slow.
SOCKET_TIMEOUT_S = 60.0
# The port of a node and that of its bus, so much higher, must both be free, and below those given out at random.
_CLUSTER_PORTS = range(15000, 22000)
_BUS_OFFSET = 10000


def find_redis_server() -> str | None:
    """The program of the environment's wheel, or the system's."""
    places = (sysconfig.get_path("scripts"), None)
    found = (shutil.which(name, path=place) for place in places for name in _NAMES)
    return next((path for path in found if path is not None), None)


class RedisServer:
    """One process on a free port and a unix socket. It keeps nothing on disk, unless told."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lmcache-test-redis-"))
        self.port = port or free_port()
        self.socket_path = str(self.folder / "socket")
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self, is_loading: bool = False) -> None:
        program = find_redis_server()
        assert program is not None, "there is no redis-server here"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket_path,
                    "--save", "", "--appendonly", "no", "--dir", str(self.folder), *self.options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: self._answers(is_loading), "redis-server does not answer", self.log)

    def _answers(self, is_loading: bool) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with self.client() as client:
            try:
                return bool(client.ping())
            except (redis.BusyLoadingError, redis.AuthenticationError) as error:
                return is_loading or isinstance(error, redis.AuthenticationError)
            except redis.ConnectionError:
                return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    @contextmanager
    def client(self, **settings: Any) -> Iterator[Any]:
        """A `redis.Redis`: a way to it that is not the adapter's."""
        client = redis.Redis(
            unix_socket_path=self.socket_path, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=SOCKET_TIMEOUT_S,
            **settings,
        )  # fmt: skip
        try:
            yield client
        finally:
            client.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisCluster:
    """Masters that share the slots, each as many in a row."""

    def __init__(self, num_nodes: int = 3) -> None:
        self.nodes: list[RedisServer] = []
        self._num_nodes = num_nodes
        try:
            for port in _free_cluster_ports(num_nodes):
                options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "15000")
                self.nodes.append(RedisServer(*options, port=port))
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                slots = [slot for slot in range(NUM_SLOTS) if self.node_of(slot) == number]
                client.execute_command("CLUSTER ADDSLOTS", *slots)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        for node in self.nodes:
            wait_until(functools.partial(self._is_ready, node), "the cluster does not form", node.log)

    def _is_ready(self, node: RedisServer) -> bool:
        with node.client() as client:
            told = client.execute_command("CLUSTER INFO")
        num_known, num_masters = told["cluster_known_nodes"], told["cluster_size"]
        return told["cluster_state"] == "ok" and int(num_known) == int(num_masters) == len(self.nodes)

    def node_of(self, slot: int) -> int:
        return slot * self._num_nodes // NUM_SLOTS

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def wait_until(is_true: Callable[[], bool], complaint: str, more: Callable[[], str] = str) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"{complaint}: {more()}"
        time.sleep(0.02)


def _free_cluster_ports(count: int) -> list[int]:
    found: list[int] = []
    candidates = list(_CLUSTER_PORTS)
    random.Random(os.getpid()).shuffle(candidates)
    for port in candidates:
        if len(found) == count:
            break
        if _is_free(port) and _is_free(port + _BUS_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
