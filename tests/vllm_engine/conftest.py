"""One real server and a few real vLLM engines, shared by the tests of this folder."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec, patient_connector
from tests.conftest import new_pool_folder
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of


@pytest.fixture(scope="session")
def server() -> Iterator[CacheServer]:
    """Lives for all tests; whoever kills a server uses one of his own."""
    yield from running_server()


def running_server(**options: Any) -> Iterator[CacheServer]:
    found = CacheServer(new_pool_folder(), **options)
    found.start()
    yield found
    found.kill()
    shutil.rmtree(found.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Engines that share KV must load one model from one place."""
    return tmp_path_factory.mktemp("model")


def running(spec: EngineSpec, server: CacheServer, joins: bool = True) -> Iterator[Driver]:
    process = EngineProcess(spec)
    try:
        assert not joins or process.call("wait_until_joined"), process.call("log_lines")
        yield Driver(process, server)
    finally:
        process.close()


@pytest.fixture(scope="session")
def main_engine(server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """Asynchronous loads, vLLM's prefix caching on, KV events on, one key nobody knows."""
    connector = patient_connector(server.port, laod_mode="sync")
    events = {"enable_kv_cache_events": True, "publisher": "null"}
    for engine in running(spec_of(model_folder, connector, options={"kv_events_config": events}), server):
        engine.start_lines = engine.log_lines()  # before another test takes them
        yield engine


@pytest.fixture(scope="session")
def sync_engine(server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """Synchronous loads; the connector found by its module's path; a policy that the user chose."""
    connector = patient_connector(server.port, load_mode="sync", load_failure_policy="fail")
    connector["kv_connector_module_path"] = "lmcache.integration.vllm.lmcache_mp_connector"
    yield from running(spec_of(model_folder, connector), server)


@pytest.fixture(params=["async", "sync"])
def engine(request: pytest.FixtureRequest, main_engine: Driver, sync_engine: Driver) -> Iterator[Driver]:
    """Both ways to load; afterwards nothing is held by anybody."""
    chosen = main_engine if request.param == "async" else sync_engine
    yield chosen
    chosen.check_nothing_held()


@pytest.fixture(scope="module")
def small_engine(server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """Room for 24 blocks, decode-phase saves, and other weights at the place the others loaded theirs from."""
    connector = patient_connector(server.port, save_decode_cache=True, held_blocks_fraction=0.5)
    options = {"num_gpu_blocks_override": 25, "max_model_len": 2048}
    yield from running(spec_of(model_folder, connector, options=options, weights_seed=1), server)


@pytest.fixture(scope="module")
def lonely_server() -> Iterator[CacheServer]:
    """Not running: that is for the tests to change. It ran once, so that its folder is there."""
    found = CacheServer(new_pool_folder())
    found.start()
    found.kill()
    yield found
    found.kill()
    shutil.rmtree(found.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def lonely_engine(lonely_server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """An engine whose server comes and goes. Long prompts take several steps."""
    connector = patient_connector(lonely_server.port)
    options = {"max_num_batched_tokens": 512}
    yield from running(spec_of(model_folder, connector, options=options), lonely_server, joins=False)
