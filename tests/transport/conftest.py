"""A real server in a process of its own, and sockets to talk to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import zmq

from lmcache.protocol import messages as m
from lmcache.protocol.frames import decode_header, decode_reply
from lmcache.transport.client import Connection
from tests.conftest import Child, StartChild, new_pool_folder

ANSWER_MS = 20_000
SERVER = """
import pathlib, sys
from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.pool import PoolConfig
from lmcache.memory.pool_files import Geometry
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
pool = PoolConfig(pathlib.Path(sys.argv[1]), Geometry(1 << 20, 64), keep=True)
config = LocalServerConfig(EngineConfig(pool, chunk_size=16), sys.argv[2])
server = LocalServer(config, MetricRegistry(), PeriodicThreadRegistry())
server.start()
print(server.loop.endpoint, server.ipc_url, flush=True)
sys.stdin.readline()
server.stop(keep=False)
print("stopped", flush=True)
"""


@dataclass
class Server:
    """A server process; `url` is its TCP address, `ipc_url` the socket in its pool folder."""

    child: Child
    url: str
    ipc_url: str

    @classmethod
    def start(cls, start_child: StartChild, folder: str, url: str = "tcp://127.0.0.1:*") -> Server:
        child = start_child(SERVER, folder, url)
        return cls(child, *child.read_line().split())


@pytest.fixture(scope="module")
def server(start_module_child: StartChild) -> Iterator[Server]:
    """One server for a module; it must be alive and answer to a clean stop at the end."""
    folder = new_pool_folder()
    running = Server.start(start_module_child, str(folder))
    yield running
    running.child.write_line()
    assert running.child.read_line() == "stopped"
    assert running.child.wait() == 0
    shutil.rmtree(folder, ignore_errors=True)


class RawSocket:
    """A socket that sends whatever it is given and reads replies as they come."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(url)

    def ask(self, *parts: bytes) -> tuple[int, m.Reply]:
        """Send one message of these parts; the number and the message of its answer."""
        self.socket.send_multipart(parts)
        assert self.socket.poll(ANSWER_MS), "the server does not answer"
        frame = self.socket.recv()
        return decode_header(frame).number, decode_reply(frame)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def context(no_descriptor_leak: None) -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def open_raw(context: zmq.Context[zmq.Socket[bytes]], server: Server) -> Iterator[Callable[[], RawSocket]]:
    sockets: list[RawSocket] = []

    def open_one() -> RawSocket:
        sockets.append(RawSocket(context, server.url))
        return sockets[-1]

    yield open_one
    for raw in sockets:
        raw.close()


@pytest.fixture
def raw(open_raw: Callable[[], RawSocket]) -> RawSocket:
    return open_raw()


@pytest.fixture
def connect(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Callable[..., Connection]]:
    """`connect(url, client_uid=1)`; closed at the end."""
    connections: list[Connection] = []

    def open_one(url: str, client_uid: int = 1) -> Connection:
        connections.append(Connection(url, client_uid, context))
        return connections[-1]

    yield open_one
    for connection in connections:
        connection.close()
