"""GET /loglevel: the three modes, and what is none of them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.http.in_process import ask, common_app


@pytest.fixture
def name() -> Iterator[str]:
    """Of a logger that the process does not know yet. It cannot be unmade, but made quiet."""
    name = f"lmcache.test-{uuid.uuid4().hex}"
    yield name
    if isinstance(logger := logging.root.manager.loggerDict.get(name), logging.Logger):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)


def loglevel(**parameters: str) -> httpx.Response:
    return ask(common_app("loglevel_api"), "GET", "/loglevel", params=parameters)


def test_list_of_all(http: httpx.Client) -> None:
    answer = http.get("/loglevel")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    title, *lines = answer.text.splitlines()
    assert title == "=== Loggers and Levels ==="
    assert "lmcache: INFO" in lines
    assert "lmcache.server.process: INFO" in lines
    assert all(line.rpartition(": ")[2] in logging.getLevelNamesMapping() for line in lines)


def test_one_is_read_and_set_in_a_running_server(http: httpx.Client) -> None:
    one = {"logger_name": "lmcache.server.lifecycle"}
    assert http.get("/loglevel", params=one).text == "lmcache.server.lifecycle: INFO"
    changed = http.get("/loglevel", params={**one, "level": "debug"})
    assert changed.text == "Set lmcache.server.lifecycle level to DEBUG (including all handlers)"
    assert changed.headers["content-type"] == "text/plain; charset=utf-8"
    assert http.get("/loglevel", params=one).text == "lmcache.server.lifecycle: DEBUG"
    assert "lmcache.server.lifecycle: DEBUG" in http.get("/loglevel").text.splitlines()


def test_documented_questions(http: httpx.Client) -> None:
    assert http.get("/loglevel?logger_name=lmcache").text == "lmcache: INFO"
    try:
        answer = http.get("/loglevel?logger_name=lmcache&level=DEBUG")
        assert answer.text == "Set lmcache level to DEBUG (including all handlers)"
        assert "lmcache: DEBUG" in http.get("/loglevel").text.splitlines()
    finally:
        http.get("/loglevel?logger_name=lmcache&level=INFO")


def test_level_in_effect_is_told_where_none_is_set(name: str) -> None:
    parent = logging.getLogger(name)
    parent.setLevel(logging.ERROR)
    assert loglevel(logger_name=f"{name}.child.of.it").text == f"{name}.child.of.it: ERROR"
    logging.getLogger(f"{name}.child.of")
    assert loglevel(logger_name=f"{name}.child.of").text == f"{name}.child.of: ERROR"


def test_question_makes_no_logger(name: str) -> None:
    expected = logging.getLevelName(logging.getLogger("lmcache").getEffectiveLevel())
    assert loglevel(logger_name=name).text == f"{name}: {expected}"
    assert name not in logging.root.manager.loggerDict


def test_root_logger_has_its_level() -> None:
    assert loglevel(logger_name="root").text == f"root: {logging.getLevelName(logging.root.level)}"


def test_handlers_are_set_too(name: str) -> None:
    handler = logging.NullHandler()
    logging.getLogger(name).addHandler(handler)
    assert loglevel(logger_name=name, level="Warning").text == f"Set {name} level to WARNING (including all handlers)"
    assert logging.getLogger(name).level == handler.level == logging.WARNING


@pytest.mark.parametrize("level", ["loud", "BASIC_FORMAT", "Logger", "10", "ﬁne"])
def test_unknown_level_is_refused(name: str, level: str) -> None:
    answer = loglevel(logger_name=name, level=level)
    assert (answer.status_code, answer.text) == (400, f"Invalid log level: {level}")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert name not in logging.root.manager.loggerDict


@pytest.mark.parametrize("level", ["DEBUG", "loud"])
def test_level_alone_is_null(http: httpx.Client, level: str) -> None:
    answer = http.get("/loglevel", params={"level": level})
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (200, "application/json", "null")
