"""Discovery of endpoint modules: order, exclusion, and every way in which it must refuse to start."""

from __future__ import annotations

import logging
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI

from lmcache.errors import EndpointError
from lmcache.server.registry import HTTPAPIRegistry

_PACKAGE = "endpoints_under_test"
_MODULE = """
from fastapi import APIRouter
router = APIRouter()

@router.{method}("{path}")
async def answer() -> str:
    return __name__
"""
_AGGREGATE = """
from fastapi import APIRouter
from endpoints_under_test import inner
router = APIRouter()
router.include_router(inner.router)
"""

WriteModule = Callable[..., None]


@pytest.fixture
def write_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """`write_module(name, text)` or `write_module(name, path=..., method=...)` in a fresh package."""
    folder = tmp_path / _PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str = _MODULE, path: str = "/x", method: str = "get") -> None:
        (folder / f"{name}.py").write_text(text.replace("{path}", path).replace("{method}", method))

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


def test_modules_are_found_in_the_order_of_their_names(write_module: WriteModule) -> None:
    write_module("zebra_api", path="/z")
    write_module("ant_api", path="/a")
    write_module("helper", "raise RuntimeError('not an endpoint module')")
    registry = HTTPAPIRegistry(_PACKAGE)
    assert list(registry.routers) == [f"{_PACKAGE}.ant_api", f"{_PACKAGE}.zebra_api"]
    assert registry.paths() == {("GET", "/a"), ("GET", "/z")}


def test_installed_routes_are_those_of_the_modules(write_module: WriteModule) -> None:
    write_module("a_api", path="/a")
    write_module("b_api", path="/a", method="post")
    app = FastAPI()
    HTTPAPIRegistry(_PACKAGE).install(app)
    assert {path: set(methods) for path, methods in app.openapi()["paths"].items()} == {"/a": {"get", "post"}}


def test_excluded_modules_are_not_even_imported(write_module: WriteModule) -> None:
    write_module("a_api", path="/a")
    write_module("broken_api", "raise RuntimeError('imported')")
    registry = HTTPAPIRegistry(_PACKAGE, {"broken_api"})
    assert registry.paths() == {("GET", "/a")}


@pytest.mark.parametrize("text", ["raise RuntimeError('surprise')", "import no_such_module", "def broken(:"])
def test_module_that_fails_to_import_is_named(write_module: WriteModule, text: str) -> None:
    write_module("a_api", path="/a")
    write_module("broken_api", text)
    with pytest.raises(EndpointError, match=f"{_PACKAGE}.broken_api cannot be imported"):
        HTTPAPIRegistry(_PACKAGE)


def test_two_owners_of_one_method_and_path_are_an_error(write_module: WriteModule) -> None:
    write_module("first_api", path="/same")
    write_module("second_api", path="/same")
    with pytest.raises(EndpointError, match=r"GET /same is defined by .*first_api and by .*second_api"):
        HTTPAPIRegistry(_PACKAGE)


def test_an_owner_inside_an_aggregate_counts(write_module: WriteModule) -> None:
    write_module("inner", path="/same")
    write_module("a_api", _AGGREGATE)
    assert HTTPAPIRegistry(_PACKAGE).paths() == {("GET", "/same")}
    write_module("z_api", path="/same")
    with pytest.raises(EndpointError, match="GET /same"):
        HTTPAPIRegistry(_PACKAGE)


def test_module_without_router_is_said_and_skipped(write_module: WriteModule, caplog: pytest.LogCaptureFixture) -> None:
    write_module("empty_api", "router = 'not a router'")
    with caplog.at_level(logging.WARNING):
        assert HTTPAPIRegistry(_PACKAGE).paths() == set()
    assert "empty_api has no `router`" in caplog.text


def test_package_that_is_not_there_is_named() -> None:
    with pytest.raises(EndpointError, match="no_such_package cannot be imported"):
        HTTPAPIRegistry("no_such_package")
