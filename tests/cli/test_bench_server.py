"""lmcache bench server against a real server: it measures, it finds one wrong byte, it leaves nothing behind."""

from __future__ import annotations

import functools
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from lmcache.cli.bench_server import measure as measuring
from lmcache.cli.bench_server.report import RunFacts, RunReport
from lmcache.cli.bench_server.run import STORED
from lmcache.testing.operator_api import FakeOperatorAPI
from lmcache.testing.waiting import wait_until
from tests.cli.conftest import Run
from tests.conftest import child_env, hear_sigint
from tests.server.conftest import StartServer
from tests.server.running import RunningServer

# Before the leak checks of each test look.
pytestmark = pytest.mark.usefixtures("server")

# 256 bytes a token: a request of 512 tokens is 128 KiB.
SMALL = ["--layers", "2", "--kv-heads", "2", "--head-size", "16", "--tokens", "600", "--lookups", "5"]
FEW = ["--requests", "2", "--warm-up", "1"]


def bench(server: RunningServer, *more: str) -> list[str]:
    return ["bench", "server", "--url", server.zmq_url, *SMALL, *more]


@pytest.fixture
def fresh(start_server: StartServer) -> RunningServer:
    """With a pool that nobody wrote to yet."""
    running = start_server()
    running.wait_until_up()
    return running


def is_alone(server: RunningServer) -> bool:
    report = server.http.get("/status").json()
    num_locked = report["storage_manager"]["l1_manager"]["read_locked_count"]
    return not (report["registered_gpu_ids"] or report["active_sessions"] or num_locked)


def wait_until_alone(server: RunningServer) -> None:
    """Nobody is registered, no session is left, and nothing is locked."""
    wait_until(lambda: is_alone(server))


class Flipper:
    """Changes one byte of the first object in a fresh pool, once something is stored there."""

    def __init__(self, server: RunningServer) -> None:
        self._path = server.folder / "pool"

    def reached(self, step: str) -> None:
        if step != STORED:
            return
        pool = np.memmap(self._path, dtype=np.uint8, mode="r+")
        place = int(np.flatnonzero(pool)[0])
        pool[place] ^= 0xFF
        pool.flush()


def test_every_byte_comes_back(run: Run, server: RunningServer) -> None:
    ended = run(*bench(server, *FEW, "--json"))
    assert (ended.code, ended.err) == (0, "")
    found = ended.json
    assert found["ok"] is True
    assert (found["tokens"], found["chunk_size"], found["request_bytes"]) == (512, 256, 131072)
    assert (found["bytes_checked"], found["bytes_wrong"]) == (3 * 131072, 0)
    assert (found["requests_measured"], found["lookups_measured"]) == (2, 5)
    for name in ("memmove_gb_per_s", "store_gb_per_s", "store_ratio", "retrieve_gb_per_s", "retrieve_ratio"):
        assert found[name] > 0
    assert 0 < found["lookup_p50_ms"] <= found["lookup_p99_ms"]
    assert found["checksums_compared"] is None
    assert found["model_name"].startswith("lmcache-bench-")
    wait_until_alone(server)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_the_servers_checksums_agree(run: Run, server: RunningServer, dtype: str) -> None:
    http_url = str(server.http.base_url)
    ended = run(*bench(server, *FEW, "--dtype", dtype, "--http-url", http_url, "--json"))
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["checksums_compared"], ended.json["checksums_different"]) == (3 * 2, 0)


def test_people_read_it(run: Run, server: RunningServer) -> None:
    ended = run(*bench(server, *FEW))
    assert ended.code == 0
    assert "2 of 512 tokens, 128 KiB: 2 chunks of 256, blocks of 16" in ended.out
    assert "verified   384 KiB, every byte as it was stored" in ended.out
    assert "of memmove" in ended.out


def test_one_wrong_byte_is_found(run: Run, fresh: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    meddled = functools.partial(measuring.measure, steps=Flipper(fresh))
    monkeypatch.setattr(measuring, "measure", meddled)
    http_url = str(fresh.http.base_url)
    ended = run(*bench(fresh, "--requests", "1", "--warm-up", "0", "--http-url", http_url, "--json"))
    assert ended.code == 1
    assert ended.json["ok"] is False
    assert ended.json["bytes_wrong"] == 1
    assert ended.json["first_wrong"].startswith("request-0, layer 0, block ")
    assert ended.json["checksums_different"] == 1


def test_a_wrong_byte_is_told_to_people(run: Run, fresh: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    meddled = functools.partial(measuring.measure, steps=Flipper(fresh))
    monkeypatch.setattr(measuring, "measure", meddled)
    ended = run(*bench(fresh, "--requests", "1", "--warm-up", "0"))
    assert ended.code == 1
    assert "WRONG      1 bytes of 128 KiB differ, the first in request-0, layer 0, block " in ended.out


class Emptier:
    """Clears the pool between store and retrieve, as an operator may at any time."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    def reached(self, step: str) -> None:
        if step == STORED:
            self._server.http.post("/clear-cache").raise_for_status()


def test_what_does_not_come_back_is_no_success(
    run: Run, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddled = functools.partial(measuring.measure, steps=Emptier(server))
    monkeypatch.setattr(measuring, "measure", meddled)
    ended = run(*bench(server, "--requests", "1", "--warm-up", "0"))
    assert ended.code == 1
    assert "PROBLEM    request-0: 2 of 2 chunks stored (stored), 0 found" in ended.out
    assert "verified   nothing" in ended.out


def test_a_server_with_a_token(run: Run, start_server: StartServer, tmp_path: pathlib.Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    server = start_server("--zmq-token-file", str(token))
    server.wait_until_up()
    refused = run(*bench(server))
    assert refused.code == 1
    assert "token" in refused.err
    assert run(*bench(server, *FEW, "--zmq-token-file", str(token))).code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokens", "255"], "--tokens must be at least one chunk of the server, 256 tokens"),
        (["--block-size", "48"], "--block-size must divide the server's chunk size of 256 tokens"),
        (["--tokens", "131072"], "a request of 32 MiB is more than half of the server's pool"),
        (["--tokens", "100000000000"], "for its own pages"),
        (["--http-url", "127.0.0.1:x"], "--http-url must be http://"),
        (["--zmq-token-file", "/nonexistent"], "--zmq-token-file /nonexistent cannot be read"),
        (["--shape", "gpt"], "'--shape'"),
        (["--dtype", "int3"], "'--dtype'"),
        (["--requests", "0"], "'--requests'"),
        (["--url", "http://localhost:1"], "--url must be tcp://HOST:PORT or ipc://PATH"),
    ],
)
def test_runs_that_cannot_be(run: Run, server: RunningServer, flags: list[str], said: str) -> None:
    ended = run(*bench(server, *flags))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    wait_until_alone(server)


def test_http_of_another_server_is_noticed(run: Run, server: RunningServer) -> None:
    with FakeOperatorAPI() as other:
        other.state.report = {"cache_context_meta": {"0": {"model_name": "another"}}}
        ended = run(*bench(server, "--http-url", other.url))
    assert ended.code == 2
    assert "is another server's" in ended.err


def test_nobody_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_HELLO_S", 0.1)
    ended = run("bench", "server", "--url", "127.0.0.1:1")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("lmcache: no lmcache server answers at tcp://127.0.0.1:1: start one with `make run`")


def num_objects(server: RunningServer) -> int:
    return server.http.get("/status").json()["storage_manager"]["l1_manager"]["total_object_count"]


def start_long_run(server: RunningServer) -> subprocess.Popen[str]:
    """In a process of its own, registered and under way."""
    before = num_objects(server)
    command = [sys.executable, "-m", "lmcache", *bench(server, "--requests", "1000000")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_env(), preexec_fn=hear_sigint
    )

    def is_under_way() -> bool:
        assert process.poll() is None, process.communicate()
        return num_objects(server) > before

    wait_until(is_under_way, 60)
    return process


def test_interrupted_it_leaves_nothing(server: RunningServer) -> None:
    process = start_long_run(server)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")
    wait_until_alone(server)


def test_a_server_that_dies_ends_the_run(fresh: RunningServer) -> None:
    process = start_long_run(fresh)
    fresh.stop(signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert err.splitlines()[-1].startswith("lmcache: ")
    assert "Traceback" not in err


FACTS = RunFacts("tcp://h:1", "1", "m", 0, 2, 2, 16, "bfloat16", 16, 256, 512, 10**9)


def test_figures_are_medians_of_ratios_and_nearest_ranks() -> None:
    report = RunReport(FACTS, [1.0, 2.0, 4.0], [2.0, 2.0, 5.0], [1.0, 1.0, 8.0], [i / 1000 for i in range(100, 0, -1)])
    assert report.figures() == {
        "memmove_gb_per_s": 0.5, "store_gb_per_s": 0.5, "store_ratio": 0.8, "retrieve_gb_per_s": 1.0,
        "retrieve_ratio": 1.0, "lookup_p50_ms": 50.0, "lookup_p99_ms": 99.0,
    }  # fmt: skip


def test_a_run_that_checked_nothing_is_not_ok() -> None:
    report = RunReport(FACTS)
    assert not report.is_ok
    assert json.loads(json.dumps(report.as_json()))["lookup_p50_ms"] is None
    assert "-" in report.lines()[3]
