"""Real server processes for the tests of this folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.server.running import RunningServer

StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server(pool_folder: pathlib.Path) -> Iterator[StartServer]:
    """`start_server(*flags, **env)`: each on the same pool, killed at the end at the latest."""
    servers: list[RunningServer] = []

    def start(*flags: str, **settings: object) -> RunningServer:
        servers.append(RunningServer(pool_folder, *flags, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
