"""`lmcache pool`: listing and removing real pools, also one that a running server holds."""

from __future__ import annotations

import json
import pathlib
import signal
from typing import Any

import pytest

from lmcache.cli.main import main
from tests.server.conftest import StartServer


def listed(capsys: pytest.CaptureFixture[str], folder: pathlib.Path) -> dict[str, Any] | None:
    assert main(["pool", "ls", "--json"]) == 0
    pools = json.loads(capsys.readouterr().out)
    return next((pool for pool in pools if pool["folder"] == str(folder)), None)


def test_pool_of_a_running_server_is_listed_and_not_removed(
    start_server: StartServer, pool_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server()
    server.wait_until_up()
    name = pool_folder.name.removeprefix("lmcache-")
    pool = listed(capsys, pool_folder)
    assert pool is not None
    assert (pool["name"], pool["is_held"], pool["num_objects"], pool["num_clients"]) == (name, True, 0, 0)
    assert pool["size_bytes"] > 0
    assert main(["pool", "rm", name]) == 2
    assert "is held by a running lmcache server" in capsys.readouterr().err
    assert server.http.get("/status").json()["is_healthy"] is True
    assert server.stop() == 0


def test_pool_of_a_killed_server_is_listed_and_removed(
    start_server: StartServer, pool_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server()
    server.wait_until_up()
    server.stop(signal.SIGKILL)
    pool = listed(capsys, pool_folder)
    assert pool is not None
    assert not pool["is_held"]
    assert main(["pool", "ls"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(pool["name"]))
    assert row.split()[-3:] == ["0", "none", "0"]
    assert main(["pool", "rm", pool["name"]]) == 0
    assert f"removed pool {pool['name']}" in capsys.readouterr().out
    assert not pool_folder.exists()
    assert listed(capsys, pool_folder) is None


@pytest.mark.parametrize("name", ["no-such-pool", "../lmcache-x", ""])
def test_unknown_pool_is_named_with_the_known_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "rm", name]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"lmcache: no pool named {name!r}; pools of ")
    assert line.count("\n") == 1


def test_folder_that_is_no_pool_is_left_alone(pool_folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool_folder.mkdir()
    (pool_folder / "notes.txt").write_text("mine")
    assert listed(capsys, pool_folder) is None
    assert main(["pool", "rm", pool_folder.name]) == 2
    assert (pool_folder / "notes.txt").exists()
