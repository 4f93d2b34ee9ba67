"""Discovery of endpoint modules: order, exclusion, and every way in which it must refuse to start."""

from __future__ import annotations

import importlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI

from lmcache.errors import ConfigError, EndpointError
from lmcache.http.registry import HTTPAPIRegistry
from tests.http.calling import ask

_PACKAGE = "endpoints_under_test"
_MODULE = """
from fastapi import APIRouter
router = APIRouter()

@router.{method}("{path}")
async def answer() -> str:
    return __name__
"""
_NESTED = """
from fastapi import APIRouter, Depends, HTTPException

def refuse() -> None:
    raise HTTPException(418)

inner = APIRouter(prefix="/in", dependencies=[Depends(refuse)])

@inner.get("/a/{x}")
async def first(x: int) -> int:
    return x

@inner.get("/b")
async def second() -> str:
    return "b"

router = APIRouter()
router.include_router(inner, prefix="/pre")
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
        importlib.invalidate_caches()  # folders are not looked at again within one tick of their clock

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


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("/x/{one}", "/x/{other}", True),
        ("/x/{one}/y/{two}", "/x/{a}/y/{b}", True),
        ("/x/{one:int}", "/x/{other:int}", True),
        ("/x/{one}", "/x/{other:path}", False),
        ("/x/{one}", "/x/one", False),
        ("/x/{one}", "/y/{one}", False),
    ],
)
def test_paths_that_differ_by_parameter_names_alone_are_the_same(
    write_module: WriteModule, first: str, second: str, is_same: bool
) -> None:
    write_module("a_api", path=first)
    write_module("b_api", path=second)
    if is_same:
        with pytest.raises(EndpointError, match=r"is defined by .*a_api and by .*b_api"):
            HTTPAPIRegistry(_PACKAGE)
    else:
        assert HTTPAPIRegistry(_PACKAGE).paths() == {("GET", first), ("GET", second)}


def test_pages_of_the_framework_have_an_owner(write_module: WriteModule) -> None:
    write_module("a_api", path="/docs")
    with pytest.raises(EndpointError, match="GET /docs is defined by the framework and by"):
        HTTPAPIRegistry(_PACKAGE)


def test_disabled_handlers_are_left_out_wherever_they_are_aggregated(write_module: WriteModule) -> None:
    write_module("inner", path="/inner")
    write_module("a_api", _AGGREGATE)
    write_module("b_api", path="/b")
    write_module("c_api", path="/c")
    registry = HTTPAPIRegistry(_PACKAGE)
    registry.disable(["inner", "/c"], "--http-disable")
    assert registry.paths() == {("GET", "/b")}
    app = FastAPI()
    registry.install(app)
    assert list(app.openapi()["paths"]) == ["/b"]
    with pytest.raises(
        ConfigError, match=r"--http-disable knows no 'x': name modules \(b, c, inner\) or paths \(/b, /c"
    ):
        registry.disable(["b", "x"], "--http-disable")


def test_prefixes_and_dependencies_of_nested_routers_count(write_module: WriteModule) -> None:
    write_module("nested_api", _NESTED)
    registry = HTTPAPIRegistry(_PACKAGE)
    assert registry.paths() == {("GET", "/pre/in/a/{x}"), ("GET", "/pre/in/b")}
    registry.disable(["/pre/in/a/{x}"], "--http-disable")
    app = FastAPI()
    registry.install(app)
    assert list(app.openapi()["paths"]) == ["/pre/in/b"]
    assert [ask(app, "GET", path).status_code for path in ("/pre/in/a/1", "/pre/in/b")] == [404, 418]
    # Another registry of the same modules still has all of them.
    assert len(HTTPAPIRegistry(_PACKAGE).paths()) == 2
    write_module("rival_api", path="/pre/in/b")
    with pytest.raises(EndpointError, match="GET /pre/in/b is defined by"):
        HTTPAPIRegistry(_PACKAGE)


def test_second_package_is_served_too_and_may_not_claim_what_the_first_has(
    write_module: WriteModule, tmp_path: pathlib.Path
) -> None:
    write_module("ant_api", path="/a")
    second = tmp_path / _PACKAGE / "inner"
    second.mkdir()
    (second / "__init__.py").write_text("")
    (second / "bee_api.py").write_text(_MODULE.replace("{path}", "/b").replace("{method}", "get"))
    registry = HTTPAPIRegistry(_PACKAGE)
    registry.add_package(f"{_PACKAGE}.inner")
    assert registry.paths() == {("GET", "/a"), ("GET", "/b")}
    (second / "cat_api.py").write_text(_MODULE.replace("{path}", "/a").replace("{method}", "get"))
    importlib.invalidate_caches()  # folders are not looked at again within one tick of their clock
    expected = rf"GET /a is defined by {_PACKAGE}\.ant_api and by {_PACKAGE}\.inner\.cat_api"
    with pytest.raises(EndpointError, match=expected):
        registry.add_package(f"{_PACKAGE}.inner")
