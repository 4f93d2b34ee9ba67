"""Opening the engine behind the HTTP server: slow, failing, stopped too early. With fakes, in this process."""

from __future__ import annotations

import logging
import threading

import pytest
from fastapi import FastAPI

from lmcache.errors import NoRoomError
from lmcache.server.lifecycle import EngineOpener
from lmcache.testing.waiting import wait_until_inside

_WAIT_S = 30.0


class FakeServer:
    """Stands in for a LocalServer; remembers what was asked of it."""

    engine = "the engine"
    loop = "the loop"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self) -> None:
        self.asked.append("start")

    def stop(self) -> None:
        self.asked.append("stop")


class Opening:
    """An opener whose factory waits for `may_open`, with what it reports in order."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_open = threading.Event()
        self.is_over = threading.Event()
        self.server = FakeServer()
        self.reports: list[str] = []
        self.app = FastAPI()
        self.app.state.engine = None
        self._error = error
        self.opener = EngineOpener(self._open, lambda _: self._report("open"), lambda: self._report("failure"))  # type: ignore[arg-type]

    def _open(self) -> FakeServer:
        assert self.may_open.wait(_WAIT_S)
        if self._error is not None:
            raise self._error
        return self.server

    def _report(self, what: str) -> None:
        self.reports.append(what)
        self.is_over.set()


def test_start_does_not_wait_and_the_engine_appears_when_it_is_there() -> None:
    opening = Opening()
    opening.opener.start(opening.app)
    assert opening.app.state.engine is None
    opening.may_open.set()
    assert opening.is_over.wait(_WAIT_S)
    assert opening.app.state.engine == "the engine"
    assert opening.app.state.request_server == "the loop"
    opening.opener.stop()
    assert opening.app.state.engine is None
    assert opening.server.asked == ["start", "stop"]
    assert opening.reports == ["open"]


def test_error_of_ours_is_kept_and_reported() -> None:
    opening = Opening(NoRoomError("full"))
    opening.opener.start(opening.app)
    opening.may_open.set()
    opening.opener.stop()
    assert opening.reports == ["failure"]
    assert str(opening.opener.failure) == "full"
    assert opening.app.state.engine is None


def test_unknown_error_is_logged_and_nobody_is_told_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    opening = Opening(RuntimeError("surprise"))
    opening.opener.start(opening.app)
    opening.may_open.set()
    with caplog.at_level(logging.ERROR):
        opening.opener.stop()
    assert opening.reports == []
    assert opening.opener.failure is None
    assert "surprise" in caplog.text


def test_stop_waits_for_an_engine_that_is_still_being_opened() -> None:
    opening = Opening()
    opening.opener.start(opening.app)
    stopper = threading.Thread(target=opening.opener.stop)
    stopper.start()
    wait_until_inside(stopper, "join")
    assert opening.server.asked == []
    opening.may_open.set()
    stopper.join(_WAIT_S)
    assert not stopper.is_alive()
    assert opening.server.asked == ["start", "stop"]


def test_stop_before_start_does_nothing() -> None:
    opening = Opening()
    opening.opener.stop()
    assert opening.server.asked == []
