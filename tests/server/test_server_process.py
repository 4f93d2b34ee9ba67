"""The life of a real server process: start, what it says, stop, and what stays behind."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable

import pytest

from lmcache.testing.waiting import PATIENCE_S
from tests.server.conftest import StartServer
from tests.server.running import running_server

# A server that opens its engine only when a line arrives on stdin.
_SLOW_START = """
import sys
from lmcache.cli.main import main
from lmcache.server import process

class SlowProcess(process.ServerProcess):
    def _open_server(self):
        sys.stdin.readline()
        return super()._open_server()

process.ServerProcess = SlowProcess
sys.exit(main(["server", *sys.argv[1:]]))
"""
# The same, in which signals are never far enough apart to force the stop; it tells of each.
_HARD_TO_FORCE = _SLOW_START.replace("process.ServerProcess =", """
    def _on_signal(self):
        super()._on_signal()
        print("signalled", flush=True)

process._SAME_SIGNAL_S = 3600
process.ServerProcess =""")  # fmt: skip
# A server that fails in a way nobody thought of.
_BROKEN_START = _SLOW_START.replace("return super()._open_server()", "raise RuntimeError('surprise')")
# A server that tells what it imported, after it was stopped.
_TELLING = """
import sys
from lmcache.cli.main import main
code = main(["server", *sys.argv[1:]])
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
sys.exit(code)
"""

# The command line without the size that RunningServer passes.
_WITHOUT_SIZE = """
import sys
from lmcache.cli.main import main
flags = sys.argv[1:]
at = flags.index("--l1-size-gb")
sys.exit(main(["server", *flags[:at], *flags[at + 2:]]))
"""


def test_start_says_what_listens_and_how_to_connect(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    server = start_server()
    lines = server.wait_until_up()
    zmq_port = int(server.zmq_url.rpartition(":")[2])
    assert any(line.split() == ["HTTP", f"http://127.0.0.1:{server.http_port}"] for line in lines)
    assert server.zmq_url.startswith("tcp://127.0.0.1:")
    assert any(f"ipc://{pool_folder}/zmq.ipc" in line for line in lines)
    assert any(str(pool_folder) in line and "32 MiB" in line for line in lines)
    assert server.connector == {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.mp.port": zmq_port},
    }
    with socket.create_connection(("127.0.0.1", zmq_port), timeout=5):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop_ends_with_0_and_removes_the_pool(
    start_server: StartServer, pool_folder: pathlib.Path, number: int
) -> None:
    server = start_server()
    server.wait_until_up()
    assert pool_folder.is_dir()
    assert server.stop(number) == 0
    assert not pool_folder.exists()
    assert "Traceback" not in server.errors()


def test_clean_stop_keeps_the_pool_on_request(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    server = start_server("--l1-keep")
    server.wait_until_up()
    assert server.stop() == 0
    assert (pool_folder / "index").exists()


def test_pool_of_a_killed_server_is_adopted_with_its_size(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    first = start_server("--l1-size-gb", "0.0625")
    first.wait_until_up()
    inode = (pool_folder / "pool").stat().st_ino
    first.stop(signal.SIGKILL)
    assert (pool_folder / "pool").stat().st_ino == inode
    second = start_server(command=["-c", _WITHOUT_SIZE])
    assert any("64 MiB" in line for line in second.wait_until_up())
    assert (pool_folder / "pool").stat().st_ino == inode
    assert second.stop() == 0


def test_second_server_on_the_same_pool_is_refused(start_server: StartServer) -> None:
    first = start_server()
    first.wait_until_up()
    second = start_server()
    assert second.process.wait(PATIENCE_S) == 2
    assert "is held by another lmcache server" in second.errors()
    assert second.errors().count("\n") == 1
    assert first.http.get("/healthcheck").status_code == 200


def test_http_answers_before_the_engine_is_there(start_server: StartServer) -> None:
    server = start_server(command=["-c", _SLOW_START])
    server.wait_until_listening()
    assert server.http.get("/").json() == {"status": "ok", "service": "LMCache HTTP API"}
    health = server.http.get("/healthcheck")
    assert (health.status_code, health.json()) == (503, {"status": "unhealthy", "reason": "engine not initialized"})
    status = server.http.get("/status")
    assert (status.status_code, status.json()) == (503, {"error": "engine not initialized"})
    assert server.http.get("/metrics").status_code == 200
    server.write_line()
    server.wait_until_up()
    assert server.http.get("/status").json()["is_healthy"] is True
    assert server.stop() == 0


def test_signals_that_come_at_once_are_one(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    server = start_server(command=["-c", _HARD_TO_FORCE])
    server.wait_until_listening()
    assert server.process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        server.process.send_signal(number)
        assert server.process.stdout.readline() == "signalled\n"
    server.write_line()
    assert server.process.wait(60) == 0
    assert not pool_folder.exists()


def test_signal_that_follows_later_forces_the_stop(start_server: StartServer) -> None:
    server = start_server(command=["-c", _SLOW_START])
    server.wait_until_listening()
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_error("stopping")
    time.sleep(1.1)  # so much later
    assert server.stop() == 1
    assert "forced to stop" in server.errors()


def test_stop_during_a_slow_start_is_clean_once_the_engine_is_there(
    start_server: StartServer, pool_folder: pathlib.Path
) -> None:
    server = start_server(command=["-c", _SLOW_START])
    server.wait_until_listening()
    server.process.send_signal(signal.SIGTERM)
    server.write_line()
    assert server.process.wait(60) == 0
    assert not pool_folder.exists()


def test_engine_that_fails_for_an_unknown_reason_stays_503_and_is_logged(start_server: StartServer) -> None:
    server = start_server(command=["-c", _BROKEN_START])
    server.wait_until_listening()
    server.write_line()
    server.wait_for_error("surprise")
    assert server.http.get("/healthcheck").status_code == 503
    assert server.http.get("/").status_code == 200
    assert server.stop() == 0


def test_running_server_imports_no_torch_and_no_engine(start_server: StartServer) -> None:
    server = start_server(command=["-c", _TELLING])
    server.wait_until_up()
    for path in ("/status", "/metrics", "/version"):
        assert server.http.get(path).status_code == 200
    assert server.stop() == 0
    assert server.process.stdout is not None
    imported = set(server.process.stdout.read().split())
    assert {"imported", "lmcache", "numpy", "fastapi"} <= imported
    assert not imported & {"torch", "vllm", "transformers"}


def test_flag_without_meaning_is_named_in_one_line(start_server: StartServer) -> None:
    server = start_server("--max-workers", "8", "--script-allowed-imports", "math", "json", "--no-l1-use-lazy")
    server.wait_until_up()
    warnings = [line for line in server.errors().splitlines() if "has no effect" in line]
    assert len(warnings) == 2
    assert any("--max-workers has no effect" in line for line in warnings)
    assert server.stop() == 0


def test_token_file_reaches_the_connector_argument(start_server: StartServer, tmp_path: pathlib.Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("0123456789abcdef\n")
    token_file.chmod(0o600)
    server = start_server("--host", "0.0.0.0", "--zmq-token-file", str(token_file))
    server.wait_until_up()
    extra = server.connector["kv_connector_extra_config"]
    assert extra["lmcache.mp.token_file"] == str(token_file)
    assert "lmcache.mp.host" not in extra
    assert "other users can read" not in server.errors()
    assert server.stop() == 0


def test_group_may_use_the_pool_on_request(start_server: StartServer, pool_folder: pathlib.Path) -> None:
    server = start_server("--l1-group", str(os.getegid()))
    server.wait_until_up()
    assert (pool_folder / "pool").stat().st_mode & 0o777 == 0o660
    assert server.stop() == 0


def test_forgotten_pool_of_this_user_is_reported_and_left(
    start_server: StartServer, make_pool_folder: Callable[[], pathlib.Path]
) -> None:
    with running_server(make_pool_folder(), "--l1-keep") as forgotten:
        assert forgotten.stop() == 0
        name = forgotten.folder.name.removeprefix("lmcache-")
        server = start_server()
        server.wait_until_up()
        assert f"has no server: lmcache pool rm {name}" in server.errors()
        assert forgotten.folder.exists()
        assert server.stop() == 0
