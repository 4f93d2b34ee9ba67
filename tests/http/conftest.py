"""One real server process for the tests of this folder, asked over real HTTP."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest

import lmcache
from lmcache.l2.registry import adapter_modules
from lmcache.testing.nursery import Nursery
from tests.http.engines import EngineSite, engine_site
from tests.http.storage_site import plugin_modules
from tests.server.conftest import start_server
from tests.server.running import RunningServer, running_server

__all__ = ["start_server"]


@pytest.fixture(scope="package")
def server(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    imports = ("--script-allowed-imports", "math", "os.path", "no_such_module")
    with running_server(make_pool_folder(), *imports) as running:
        yield running


@pytest.fixture(scope="package", autouse=True)
def _started(server: RunningServer) -> None:
    """Before the leak checks of each test look."""


@pytest.fixture
def http(server: RunningServer) -> httpx.Client:
    return server.http


@pytest.fixture(scope="package")
def nursery() -> Iterator[Nursery]:
    """Forks the synthetic engines."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """L2 adapters that only tests have."""
    for name, module in plugin_modules().items():
        monkeypatch.setitem(adapter_modules(), name, module)


@pytest.fixture(scope="module")
def site(nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[EngineSite]:
    """A server of the module's own, and room for engines."""
    with engine_site(make_pool_folder(), nursery) as found:
        yield found


@pytest.fixture
def package_copy(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The whole package in a place where a test may add modules, as a developer would."""
    root = tmp_path / "copy"
    original = pathlib.Path(lmcache.__file__).parent
    # What is compiled comes along, but for files that somebody is only just writing.
    shutil.copytree(original, root / "lmcache", ignore=shutil.ignore_patterns("*.pyc.*"))
    yield root / "lmcache"
    shutil.rmtree(root)
