"""One real server process for the tests of this folder, asked over real HTTP."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.server.running import RunningServer


@pytest.fixture(scope="package")
def server(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    running = RunningServer(make_pool_folder())
    try:
        running.wait_until_up()
        yield running
    finally:
        running.close()
        shutil.rmtree(running.folder, ignore_errors=True)


@pytest.fixture(scope="package", autouse=True)
def _started(server: RunningServer) -> None:
    """Before the leak checks of each test look."""


@pytest.fixture
def http(server: RunningServer) -> httpx.Client:
    return server.http
