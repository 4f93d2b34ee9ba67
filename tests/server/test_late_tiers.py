"""A backend that is slow, or away, when the server starts: engines are served from L1 meanwhile."""

from __future__ import annotations

import json
import pathlib

import zmq

from lmcache.protocol import messages as m
from lmcache.testing.ports import free_port
from lmcache.testing.waiting import PATIENCE_S
from lmcache.transport.client import Connection
from tests.server.conftest import StartServer

# A server whose tier is open only when a line arrives on stdin.
_LATE_TIER = """
import sys
from lmcache.cli.main import main
from lmcache.l2.memory.adapter import MockL2Adapter

inside = MockL2Adapter.open

def open_late(self):
    print("opening", flush=True)
    sys.stdin.readline()
    inside(self)

MockL2Adapter.open = open_late
sys.exit(main(["server", *sys.argv[1:]]))
"""
MEMORY = json.dumps({"type": "memory", "max_size_gb": 0.01})


def test_engines_are_served_while_a_tier_is_being_opened(start_server: StartServer) -> None:
    port = free_port()
    server = start_server("--port", str(port), "--l2-adapter", MEMORY, command=["-c", _LATE_TIER])
    assert server.process.stdout is not None
    assert server.process.stdin is not None
    while server.process.stdout.readline() != "opening\n":
        pass
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    connection = Connection(f"tcp://localhost:{port}", 77, context)
    assert isinstance(connection.call(m.Hello(""), 0, PATIENCE_S), m.Welcome)
    connection.close()
    context.destroy(linger=0)
    server.process.stdin.write("\n")
    server.process.stdin.flush()
    server.wait_until_up()


def test_a_backend_that_is_away_holds_nobody_up(start_server: StartServer, tmp_path: pathlib.Path) -> None:
    redis = json.dumps({"type": "resp", "unix_socket_path": str(tmp_path / "nobody")})
    server = start_server("--l2-adapter", redis)
    server.wait_until_up()
    status = server.http.get("/status").json()
    (adapter,) = status["storage_manager"]["l2_adapters"]
    assert (adapter["state"], status["is_healthy"]) == ("opening", False)
    assert str(tmp_path / "nobody") in adapter["last_error"]
