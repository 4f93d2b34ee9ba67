"""The command line run in this process, against the fake API or whatever LMCACHE_HTTP_URL names."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lmcache.cli.main import main
from lmcache.testing.operator_api import FakeOperatorAPI
from tests.server.conftest import start_server
from tests.server.running import RunningServer, running_server

__all__ = ["start_server"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*arguments, stdin=...)`: text for a pipe, a `Terminal` for somebody who answers."""

    def run_command(*arguments: str, stdin: str | Terminal = "") -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        code = main(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run_command


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOperatorAPI]:
    with FakeOperatorAPI() as fake:
        monkeypatch.setenv("LMCACHE_HTTP_URL", fake.url)
        yield fake


@pytest.fixture(scope="module")
def server(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    """A real one, for all tests of a module that leave it as it was."""
    with running_server(make_pool_folder()) as running:
        yield running
