"""HTTP listens before the engine is there: a real process whose engine opens when the test says so."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.http.document_000 import REGARDLESS_OF_ENGINE, WITHOUT_ENGINE, Sample
from tests.http.test_documents import check_sample
from tests.server.conftest import StartServer
from tests.server.running import RunningServer, running_server

# A server whose engine opens only when a line arrives on stdin.
_SLOW = """
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
# One that then fails in a way nobody thought of, or for want of room.
_BROKEN = _SLOW.replace("return super()._open_server()", "raise RuntimeError('surprise')")
_NO_ROOM = _SLOW.replace(
    "return super()._open_server()",
    "from lmcache.errors import NoRoomError; raise NoRoomError('the room went while it was asked for')",
)


@pytest.fixture(scope="module")
def slow(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    with running_server(make_pool_folder(), only_listens=True, command=["-c", _SLOW]) as running:
        yield running


@pytest.mark.parametrize("sample", WITHOUT_ENGINE, ids=str)
def test_what_needs_the_engine_says_that_it_is_not_there(slow: RunningServer, sample: Sample) -> None:
    check_sample(slow.http, sample)
    answer = slow.http.request(sample.method, sample.target, json=sample.body)
    assert "engine not initialized" in answer.json().values()


@pytest.mark.parametrize("sample", REGARDLESS_OF_ENGINE, ids=str)
def test_what_does_not_need_the_engine_answers_as_ever(slow: RunningServer, sample: Sample) -> None:
    check_sample(slow.http, sample)


def test_these_are_the_operations_that_describe_such_an_answer(slow: RunningServer) -> None:
    """What is tried above says so in its description, and what says so is tried above."""
    described = {
        (method.upper(), path): operation["responses"].get("503", {}).get("description", "")
        for path, operations in slow.http.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
    }
    tried = {(sample.method, sample.target.partition("?")[0]) for sample in WITHOUT_ENGINE}
    of_tried = {
        (method, path)
        for method, path in described
        for name, target in tried
        if name == method and _matches(path, target)
    }
    assert [place for place in sorted(of_tried) if not described[place]] == []
    assert [place for place, text in described.items() if "engine" in text and place not in of_tried] == []


def _matches(path: str, target: str) -> bool:
    parts, given = path.split("/"), target.split("/")
    return len(parts) == len(given) and all(
        part == value or part.startswith("{") for part, value in zip(parts, given, strict=True)
    )


def test_same_calls_answer_once_the_engine_is_there(start_server: StartServer) -> None:
    server = start_server(command=["-c", _SLOW])
    server.wait_until_listening()
    assert server.http.get("/status").status_code == 503
    server.write_line()
    server.wait_until_up()
    for target in ("/healthcheck", "/status", "/l2/adapters", "/quota", "/reconfigure/backends"):
        assert server.http.get(target).status_code == 200
    assert server.stop() == 0


def test_engine_that_fails_later_stays_503_and_is_logged(start_server: StartServer) -> None:
    server = start_server(command=["-c", _BROKEN])
    server.wait_until_listening()
    server.write_line()
    server.wait_for_error("RuntimeError: surprise")
    assert "the engine failed to open" in server.errors()
    for sample in WITHOUT_ENGINE:
        answer = server.http.request(sample.method, sample.target, json=sample.body)
        assert answer.status_code == 503, sample
    assert server.http.get("/").status_code == 200
    assert server.stop() == 0


def test_engine_that_finds_no_room_later_ends_the_process_with_a_line(start_server: StartServer) -> None:
    server = start_server(command=["-c", _NO_ROOM])
    server.wait_until_listening()
    server.write_line()
    assert server.process.wait(60) == 2
    assert server.errors().splitlines()[-1] == "lmcache: the room went while it was asked for"


@pytest.mark.parametrize(
    "flags", [["--l1-size-gb", "1000000"], ["--chunk-size", "0"], ["--http-host", "192.0.2.1"], ["--http-disable", "x"]]
)
def test_bad_configuration_ends_with_a_line_before_anything_listens(
    start_server: StartServer, flags: list[str]
) -> None:
    server = start_server(*flags)
    assert server.process.wait(60) == 2
    (line,) = server.errors().splitlines()
    assert flags[0] in line
