"""Operator commands against a real server, so that the fake they are tested with elsewhere cannot mislead them."""

from __future__ import annotations

import pathlib
import time

import pytest

from tests.cli.conftest import Run
from tests.server.conftest import StartServer
from tests.server.running import RunningServer

MOCK = '{"type": "mock", "max_size_gb": 0.01}'


@pytest.fixture(autouse=True)
def _named_by_environment(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_HTTP_URL", str(server.http.base_url))


def test_ping(run: Run) -> None:
    assert run("ping").code == 0


def test_status(run: Run, server: RunningServer) -> None:
    ended = run("status")
    assert (ended.code, ended.err) == (0, "")
    assert "MPCacheServer at " in ended.out
    assert "0, 0 being read, 0 being written" in ended.out
    assert str(server.folder) in ended.out
    assert run("status", "--json").json["chunk_size"] == 256


def test_conf(run: Run, server: RunningServer) -> None:
    assert ["http.http_port", str(server.http_port)] in run("conf", "http").table
    assert set(run("conf", "--json").json) >= {"mp", "storage_manager", "observability", "http", "coordinator"}


def test_metrics(run: Run) -> None:
    assert "# TYPE lmcache_" in run("metrics").out
    rows = run("metrics", "--filter", "l1_memory_usage").table
    assert ["lmcache_mp_l1_memory_usage_bytes", "0"] in rows
    assert run("metrics", "--json", "--filter", "lmcache_mp").json


def test_metrics_reset(run: Run) -> None:
    assert run("metrics", "--reset").code == 0


def test_clear(run: Run) -> None:
    assert run("clear", "--yes").code == 0
    assert run("clear", "--keep-locked", "--yes", "--json").json["cleared"] == {"tier": "l1"}


def test_quotas(run: Run) -> None:
    assert run("quota", "set", "alice", "2").code == 0
    assert run("quota", "set", "_default", "1.5").code == 0
    assert run("quota", "list", "--json").json["users"]["alice"]["limit_gb"] == 2.0
    assert run("quota", "list").table[2][:3] == ["_default", "1.5", "0.000"]
    assert run("quota", "get", "alice").code == 0
    assert run("quota", "set", "alice", "nan").code == 1
    assert run("quota", "rm", "alice").code == 0
    assert run("quota", "rm", "alice").code == 1


def test_without_l2(run: Run) -> None:
    assert "has no L2 adapters" in run("adapters").out
    listed, deleted = run("keys"), run("delete", stdin='{"chunk_hash_hex": "aa", "model_name": "m", "kv_rank": 0}')
    assert (listed.code, deleted.code) == (1, 1)
    assert "no L2 adapters configured" in listed.err
    assert "no L2 adapters configured" in deleted.err
    missing = run("reconfigure", "mock", "resize", "size=1MiB")
    assert missing.code == 1
    assert "mock adapter not found" in missing.err


@pytest.fixture
def tiered(run: Run, start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    """With an L2 adapter that holds the two chunks of one request."""
    running = start_server("--l2-adapter", MOCK)
    running.wait_until_up()
    monkeypatch.setenv("LMCACHE_HTTP_URL", str(running.http.base_url))
    shape = ["--layers", "2", "--kv-heads", "2", "--head-size", "16", "--tokens", "512"]
    counts = ["--requests", "1", "--warm-up", "0", "--lookups", "0"]
    assert run("bench", "server", "--url", running.zmq_url, *shape, *counts, "--model-name", "org/m").code == 0
    deadline = time.monotonic() + 20
    while len(run("keys", "--json").out.splitlines()) < 2:
        assert time.monotonic() < deadline, "nothing came to L2"
        time.sleep(0.02)
    return running


def test_keys_go_from_listing_to_deletion(run: Run, tiered: RunningServer) -> None:
    listed = run("keys", "--page-size", "1")
    assert listed.err.startswith("2 keys, ")
    assert "  org/m-" in listed.out.splitlines()[1]
    lines = run("keys", "--json").out
    assert run("delete", stdin=lines.splitlines()[0]).out == "1 keys asked of MockL2Adapter to be deleted\n"
    words = run("keys").out.splitlines()[1].split()
    named = run("delete", words[0], "--model", words[-1], "--kv-rank", words[3], "--adapter", "mock", "--yes")
    assert named.code == 0
    assert run("keys").err == "0 keys, 0 B\n"


def test_adapters_and_their_reconfiguration(run: Run, tiered: RunningServer) -> None:
    rows = run("adapters").table
    assert ["0", "MockL2Adapter", "yes"] in rows
    assert ["mock", "0", "status,", "resize"] in rows
    assert run("reconfigure", "mock", "resize", "size=1MiB").json["new_size_bytes"] == 1 << 20
    refused = run("reconfigure", "mock", "resize", "size=lots")
    assert refused.code == 1
    assert "size must be a positive integer byte count" in refused.err
    status = run("status")
    assert status.code == 0
    row = next(row for row in status.table if row[1:2] == ["MockL2Adapter"])
    assert row[2:4] == ["yes", "[###.................]"]
    assert run("quota", "get", "_default", "--json").json["current_usage_gb"] > 0


def test_tokens(run: Run, start_server: StartServer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokens").write_text("read reader-reader-reader\noperate operator-operator\n")
    (tmp_path / "reader").write_text("reader-reader-reader\n")
    (tmp_path / "operator").write_text("operator-operator\n")
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    server = start_server("--http-auth-token-file", str(tmp_path / "tokens"))
    server.wait_until_up()
    url = ["--url", str(server.http.base_url)]
    assert run("ping", *url).code == 0
    unknown = run("status", *url)
    assert unknown.code == 1
    assert "wants a token for GET /status" in unknown.err
    reader = ["--token-file", str(tmp_path / "reader")]
    assert run("status", *url, *reader).code == 0
    refused = run("clear", "--yes", *url, *reader)
    assert refused.code == 1
    assert "refused POST /clear-cache" in refused.err
    assert run("clear", "--yes", *url, "--token-file", str(tmp_path / "operator")).code == 0
