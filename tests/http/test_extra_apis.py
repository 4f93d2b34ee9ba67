"""Endpoints added and taken away: folders, entry points, the documented packages. Each with a real restart."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import lmcache
from lmcache.cli.server import ENDPOINTS_PACKAGE
from lmcache.config.mp_server import HTTPConfig
from lmcache.errors import LMCacheError
from lmcache.server.http_front import prepare_http
from tests.server.conftest import StartServer
from tests.server.running import RunningServer

_MODULE = """
from fastapi import APIRouter, Request
router = APIRouter()

@router.{method}("{path}")
async def answer(request: Request) -> dict[str, object]:
    return {{"engine": request.app.state.engine is not None, "module": __name__}}
"""
_WITH_NEIGHBOUR = """
from __future__ import annotations
from fastapi import APIRouter
from pydantic import BaseModel
from . import words
router = APIRouter()

class Wish(BaseModel):
    count: int

@router.post("/wishes")
async def wish(body: Wish) -> str:
    return words.WORD * body.count
"""
_SHIM = "from lmcache.v1.internal_api_server.vllm.probe_api import router\n__all__ = ['router']\n"
_HTTP_APIS = "v1/multiprocess/http_apis"
_COMMON = "v1/internal_api_server/common"
_VLLM = "v1/internal_api_server/vllm"


def module(path: str = "/probe", method: str = "get") -> str:
    return _MODULE.format(path=path, method=method)


def refused_line(server: RunningServer) -> str:
    """The one line with which a start ends."""
    assert server.process.wait(60) == 2
    (line,) = server.errors().splitlines()
    return line


def refusal(**settings: Any) -> str:
    """What the start says of these settings, before anything listens."""
    with pytest.raises(LMCacheError) as caught:
        prepare_http(HTTPConfig(**settings), ENDPOINTS_PACKAGE)
    return str(caught.value)


@pytest.fixture
def extra(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "extra"
    folder.mkdir()
    return folder


def test_folder_is_served_and_guarded_like_the_rest(
    start_server: StartServer, extra: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (extra / "probe_api.py").write_text(module())
    (extra / "wishes_api.py").write_text(_WITH_NEIGHBOUR)
    (extra / "words.py").write_text("WORD = 'ab'")
    (extra / "no_router_api.py").write_text("router = 3")
    second = tmp_path / "second"
    second.mkdir()
    (second / "probe_api.py").write_text(module("/second", "post"))
    server = start_server("--http-extra-apis", str(extra), "--http-extra-apis", str(second))
    server.wait_until_up()
    assert server.http.get("/probe").json()["engine"] is True
    assert server.http.post("/wishes", json={"count": 2}).json() == "abab"
    assert server.http.post("/second").json()["module"] != server.http.get("/probe").json()["module"]
    assert server.http.post("/wishes", json={"count": 1}, headers={"origin": "http://x.example"}).status_code == 403
    assert "no_router_api.py has no `router`" in server.errors()
    assert {"/probe", "/wishes", "/second"} <= set(server.http.get("/openapi.json").json()["paths"])
    assert server.stop() == 0
    assert "lmcache.audit: 127.0.0.1: POST /wishes -> 200" in server.errors()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "--http-extra-apis {} is not a folder"),
        ({}, "--http-extra-apis {} holds no module named *_api.py"),
        ({"probe.py": module()}, "holds no module named *_api.py"),
        ({"bad_api.py": "raise RuntimeError('surprise')"}, "{}/bad_api.py cannot be imported: RuntimeError: surprise"),
        ({"bad_api.py": "import no_such_module"}, "{}/bad_api.py cannot be imported: ModuleNotFoundError"),
        ({"bad_api.py": "def broken(:"}, "{}/bad_api.py cannot be imported: SyntaxError"),
        ({"mine_api.py": module("/status")}, "GET /status is defined by lmcache.v1.multiprocess.http_apis.status_api"),
        ({"mine_api.py": module("/docs")}, "GET /docs is defined by the framework and by {}/mine_api.py"),
        (
            {"a_api.py": module("/x/{{one}}"), "b_api.py": module("/x/{{other}}")},
            "GET /x/{{other}} is defined by {0}/a_api.py and by {0}/b_api.py",
        ),
        (
            {"a_api.py": module("/periodic-threads/{{name}}")},
            "is defined by lmcache.v1.multiprocess.http_apis.common_api and by {0}/a_api.py",
        ),
    ],
)
def test_bad_folder_is_refused_in_a_line(tmp_path: pathlib.Path, files: dict[str, str] | None, said: str) -> None:
    folder = tmp_path / "extra"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text.replace("{{", "{").replace("}}", "}"))
    assert said.format(folder) in refusal(http_extra_apis=(str(folder),))


def test_bad_folder_ends_the_start_with_one_line(start_server: StartServer, extra: pathlib.Path) -> None:
    (extra / "bad_api.py").write_text("raise RuntimeError('surprise')")
    line = refused_line(start_server("--http-extra-apis", str(extra)))
    assert f"{extra}/bad_api.py cannot be imported: RuntimeError: surprise" in line


def install(site: pathlib.Path, text: str, value: str = "their_endpoints") -> None:
    """What an installer leaves behind of a distribution with one entry point."""
    (site / "their_endpoints.py").write_text(text)
    info = site / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lmcache.http_apis]\ntheirs = {value}\n")


def with_site(site: pathlib.Path) -> dict[str, str]:
    """The environment of a process for which these distributions are installed."""
    return {"PYTHONPATH": f"{pathlib.Path(lmcache.__file__).parents[1]}:{site}"}


def with_copy(package: pathlib.Path) -> dict[str, str]:
    """The environment of a process that imports this copy, and not what lies in its working directory."""
    return {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}


@pytest.mark.parametrize("value", ["their_endpoints", "their_endpoints:router"])
def test_entry_point_is_served(start_server: StartServer, tmp_path: pathlib.Path, value: str) -> None:
    install(tmp_path, module("/theirs"), value)
    server = start_server(**with_site(tmp_path))
    server.wait_until_up()
    assert server.http.get("/theirs").json() == {"engine": True, "module": "their_endpoints"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('surprise')", "entry point theirs = their_endpoints cannot be imported: RuntimeError"),
        (module("/healthcheck"), "health_api and by entry point theirs = their_endpoints"),
    ],
)
def test_bad_entry_point_ends_the_start_with_a_line(
    start_server: StartServer, tmp_path: pathlib.Path, text: str, said: str
) -> None:
    install(tmp_path, text)
    assert said in refused_line(start_server(**with_site(tmp_path)))


def test_new_modules_of_the_package_are_served_after_a_restart(
    start_server: StartServer, package_copy: pathlib.Path
) -> None:
    env = with_copy(package_copy)
    before = start_server(**env)
    before.wait_until_up()
    assert [before.http.get(url).status_code for url in ("/own", "/shared", "/engine")] == [404, 404, 404]
    (package_copy / _HTTP_APIS / "own_api.py").write_text(module("/own"))
    (package_copy / _COMMON / "shared_api.py").write_text(module("/shared"))
    (package_copy / _VLLM / "probe_api.py").write_text(module("/engine"))
    assert before.http.get("/own").status_code == 404
    assert before.stop() == 0
    after = start_server(**env)
    after.wait_until_up()
    assert [after.http.get(url).status_code for url in ("/own", "/shared", "/engine")] == [200, 200, 404]
    assert after.stop() == 0
    (package_copy / _HTTP_APIS / "probe_api.py").write_text(_SHIM)
    with_shim = start_server(**env)
    with_shim.wait_until_up()
    assert with_shim.http.get("/engine").json()["module"] == "lmcache.v1.internal_api_server.vllm.probe_api"


def test_incompatible_common_module_is_left_out(start_server: StartServer, package_copy: pathlib.Path) -> None:
    (package_copy / _COMMON / "other_api.py").write_text("raise RuntimeError('not for this process')")
    env = with_copy(package_copy)
    line = refused_line(start_server(**env))
    assert "lmcache.v1.internal_api_server.common.other_api cannot be imported: RuntimeError" in line
    common_api = package_copy / _HTTP_APIS / "common_api.py"
    text = common_api.read_text()
    assert "_MP_INCOMPATIBLE_MODULES: frozenset[str] = frozenset()" in text
    common_api.write_text(text.replace("= frozenset()", '= frozenset({"other_api"})'))
    server = start_server(**env)
    server.wait_until_up()
    assert server.http.get("/env").status_code == 200


def test_two_common_modules_with_one_path_are_named(start_server: StartServer, package_copy: pathlib.Path) -> None:
    (package_copy / _COMMON / "zebra_api.py").write_text(module("/env"))
    line = refused_line(start_server(**with_copy(package_copy)))
    assert "GET /env is defined by lmcache.v1.internal_api_server.common.env_api and by" in line


def test_disabled_modules_and_paths_are_not_there(start_server: StartServer, extra: pathlib.Path) -> None:
    (extra / "probe_api.py").write_text(module())
    server = start_server(
        "--http-extra-apis", str(extra), "--http-disable", "env,run_script, probe", "--http-disable", "/lmc_version"
    )
    server.wait_until_up()
    gone = [("GET", "/env"), ("POST", "/run_script"), ("GET", "/probe"), ("GET", "/lmc_version")]
    for method, path in gone:
        answer = server.http.request(method, path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    described = server.http.get("/openapi.json").json()["paths"]
    assert not {path for _, path in gone} & set(described)
    for path in ("/version", "/commit_id", "/threads", "/status", "/healthcheck"):
        assert server.http.get(path).status_code == 200


@pytest.mark.parametrize("name", ["no_such", "env_api", "/no-such", "run-script"])
def test_unknown_name_is_refused_with_those_that_there_are(name: str) -> None:
    said = refusal(http_disable=("env", name))
    assert f"--http-disable knows no {name!r}" in said
    for known in ("env", "health", "run_script", "version", "/healthcheck", "/periodic-threads/{thread_name}"):
        assert known in said
