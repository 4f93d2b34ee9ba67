"""The `lmcache` command itself: help, version, and how it refuses."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from lmcache.cli.main import cli, main
from lmcache.utils import get_version
from tests.conftest import StartChild, child_env

_HEAVY = {"numpy", "zmq", "fastapi", "uvicorn", "msgspec", "prometheus_client", "torch", "lmcache.server"}
_LIST_IMPORTS = """
import sys
from lmcache.cli.main import main
code = main(sys.argv[1:])
print("imported", *sorted(sys.modules))
"""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = {line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line}
    assert named == {
        "server", "standalone", "pool", "doctor", "ping", "status", "conf", "metrics", "clear", "keys", "delete",
        "quota", "adapters", "reconfigure", "bench",
    }  # fmt: skip


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: lmcache {name}" in capsys.readouterr().out


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands" in capsys.readouterr().out
    assert main(["pool"]) == 0
    assert "ls" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == get_version() + "\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["bench", "server", "--help"], ["quota", "set", "--help"],
     *([name, "--help"] for name in cli.list_commands(click.Context(cli)))],
)  # fmt: skip
def test_help_imports_nothing_heavy(start_child: StartChild, arguments: list[str]) -> None:
    child = start_child(_LIST_IMPORTS, *arguments)
    while not (line := child.read_line() or "-").startswith("imported"):
        pass
    assert not _HEAVY & set(line.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["srv"], "lmcache: no command 'srv'; there are: server, standalone, pool"),
        (["--verbos"], "No such option"),
        (["server", "--prot", "1"], "--port"),
        (["server", "extra"], "unexpected extra argument"),
        (["pool", "rm"], "NAME"),
    ],
)
def test_bad_use_is_one_line_and_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_module_is_the_same_command() -> None:
    command = [sys.executable, "-m", "lmcache"]
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, env=child_env(), check=True)
    assert result.stdout.strip() == get_version()
    refused = subprocess.run([*command, "server", "--port", "x"], capture_output=True, text=True, env=child_env())
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
