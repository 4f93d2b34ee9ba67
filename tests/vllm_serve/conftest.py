"""One cache server and one model folder for all tests of a module."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from lmcache.testing.ports import free_port
from lmcache.testing.vllm_models import TINY_LLAMA, write_model, write_weights
from lmcache.testing.vllm_spec import patient_connector
from tests.server.running import RunningServer

CHUNK = 256


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of one seed in one folder: all engines that load it share their KV."""
    folder = write_model(tmp_path_factory.mktemp("serve") / "model", TINY_LLAMA)
    write_weights(folder, TINY_LLAMA, 0)
    return folder


@pytest.fixture(scope="module")
def cache_server(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[RunningServer]:
    folder = make_pool_folder()
    server = RunningServer(folder, "--port", str(free_port()), "--l1-size-gb", "0.25")
    try:
        server.wait_until_up()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def connector(cache_server: RunningServer) -> dict[str, Any]:
    return patient_connector(int(cache_server.zmq_url.rsplit(":", 1)[1]))
