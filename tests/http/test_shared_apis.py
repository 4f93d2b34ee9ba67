"""Endpoints of `internal_api_server/common`: one module, on the server and on the internal API of an engine."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import httpx
import pytest

from lmcache.testing.waiting import PATIENCE_S
from tests.conftest import StartChild
from tests.http.test_extra_apis import module, refused_line, with_copy
from tests.server.conftest import StartServer

_START_S = 60.0
_COMMON = "v1/internal_api_server/common"
_COMMON_API = "v1/multiprocess/http_apis/common_api.py"
_PROBE = """
from fastapi import APIRouter
router = APIRouter()

@router.get("/probe")
async def answer() -> str:
    return __name__
"""
# What vLLM's process does, with what the manager stands for made up. It ends with its standard input.
_INTERNAL_API = """
import sys
from lmcache.config.engine.views import internal_api_settings
from lmcache.embedded.manager import WORKER
from lmcache.errors import LMCacheError
from lmcache.testing.embedded_fake import make_manager
from lmcache.testing.ports import free_port
from lmcache.v1.internal_api_server.api_server import InternalAPIServer
port = free_port(2)
values = {"internal_api_server_enabled": True, "internal_api_server_port_start": port}
manager = make_manager(WORKER, values)
try:
    server = InternalAPIServer(internal_api_settings(manager.config), 1, manager)
except LMCacheError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
server.start()
print(f"http://127.0.0.1:{port + 1}", flush=True)
sys.stdin.read()
server.stop()
"""


class BothServers:
    """Each start is that of new processes over the copy as it is by then."""

    def __init__(self, start_server: StartServer, start_child: StartChild, package: pathlib.Path) -> None:
        self._start_server = start_server
        self._start_child = start_child
        self.package = package
        self._internal: list[httpx.Client] = []

    def restart(self) -> tuple[httpx.Client, httpx.Client]:
        """To ask the server, and to ask the internal API."""
        server = self._start_server(**with_copy(self.package))
        server.wait_until_up()
        url = self._start_child(_INTERNAL_API, **with_copy(self.package)).read_line(_START_S)
        self._internal.append(httpx.Client(base_url=url, timeout=PATIENCE_S))
        return server.http, self._internal[-1]

    def refusals(self) -> tuple[str, str]:
        """What either says that does not start."""
        server = refused_line(self._start_server(**with_copy(self.package)))
        return server, self._start_child(_INTERNAL_API, **with_copy(self.package)).read_line(_START_S)

    def close(self) -> None:
        for client in self._internal:
            client.close()

    def leave_out_of_the_server(self, name: str) -> None:
        common_api = self.package / _COMMON_API
        text = common_api.read_text()
        empty = "_MP_INCOMPATIBLE_MODULES: frozenset[str] = frozenset()"
        assert empty in text
        common_api.write_text(text.replace(empty, empty.replace("()", f"({{{name!r}}})")))


@pytest.fixture
def both(start_server: StartServer, start_child: StartChild, package_copy: pathlib.Path) -> Iterator[BothServers]:
    found = BothServers(start_server, start_child, package_copy)
    yield found
    found.close()


def test_a_common_module_appears_on_both(both: BothServers) -> None:
    (both.package / _COMMON / "probe_api.py").write_text(_PROBE)
    server, internal = both.restart()
    names = [asked.get("/probe").json() for asked in (server, internal)]
    assert names == ["lmcache.v1.internal_api_server.common.probe_api"] * 2
    assert "/probe" in internal.get("/openapi.json").json()["paths"]


def test_a_module_that_the_server_leaves_out_appears_on_the_internal_one_alone(both: BothServers) -> None:
    (both.package / _COMMON / "probe_api.py").write_text(_PROBE)
    both.leave_out_of_the_server("probe_api")
    server, internal = both.restart()
    assert [asked.get("/env").status_code for asked in (server, internal)] == [200, 200]
    assert [asked.get("/probe").status_code for asked in (server, internal)] == [404, 200]


def test_a_common_module_that_cannot_be_imported_stops_both(both: BothServers) -> None:
    (both.package / _COMMON / "probe_api.py").write_text("raise RuntimeError('not for this process')")
    for said in both.refusals():
        assert "lmcache.v1.internal_api_server.common.probe_api cannot be imported: RuntimeError" in said


def test_a_path_that_two_common_modules_own_stops_both(both: BothServers) -> None:
    (both.package / _COMMON / "zebra_api.py").write_text(module("/env"))
    for said in both.refusals():
        assert "GET /env is defined by lmcache.v1.internal_api_server.common.env_api and by" in said
