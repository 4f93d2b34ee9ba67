"""Real vLLM engines under the stock name `LMCacheConnectorV1`, each with an engine of ours inside."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from lmcache.testing.ports import free_port
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec, embedded_connector
from tests.vllm_shared.driver import spec_of
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.operators import Operated, apis

# Small pools: several engines live at the same time.
POOL_GB = 0.125


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Engines that share KV must load one model from one place."""
    return tmp_path_factory.mktemp("model")


def v1_connector(keep_on_reset: bool = True, **settings: Any) -> dict[str, Any]:
    """With a small pool; the tests reset vLLM's prefix cache only to make it forget. A rank that gets no processor for
    a while is waited for, where a user would rather compute."""
    return embedded_connector(keep_on_reset, **{"max_local_cpu_size": POOL_GB, "lookup_timeout_ms": 30_000, **settings})


def running(spec: EngineSpec) -> Iterator[EmbeddedDriver]:
    process = EngineProcess(spec)
    driver = EmbeddedDriver(process)
    try:
        driver.wait_for_tiers()
        yield driver
        folder = driver.pool_folder()
    finally:
        process.close()
    assert folder is None or not pathlib.Path(folder).exists()


def on_disk(folder: pathlib.Path, **settings: Any) -> dict[str, Any]:
    return v1_connector(local_disk=str(folder), max_local_disk_size=1.0, **settings)


@contextlib.contextmanager
def opened(folder: pathlib.Path, connector: dict[str, Any], **more: Any) -> Iterator[EmbeddedDriver]:
    with contextlib.contextmanager(running)(spec_of(folder, connector, **more)) as engine:
        yield engine


@pytest.fixture(scope="session")
def main_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    """vLLM's prefix caching on, events on, one key nobody knows."""
    events = {"enable_kv_cache_events": True, "publisher": "null"}
    connector = v1_connector(enable_kv_events=True, chunk_sice=128)
    yield from running(spec_of(model_folder, connector, options={"kv_events_config": events}))


@pytest.fixture
def engine(main_engine: EmbeddedDriver) -> Iterator[EmbeddedDriver]:
    """Afterwards nothing is held by anybody."""
    yield main_engine
    main_engine.check_nothing_held()


@pytest.fixture(scope="module")
def small_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    """Room for 24 blocks, and decode-phase saves."""
    options = {"num_gpu_blocks_override": 25, "max_model_len": 2048}
    yield from running(spec_of(model_folder, v1_connector(save_decode_cache=True), options=options))


@pytest.fixture(scope="session")
def operated_engine(model_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """With events, a disk tier, and the internal API of both halves."""
    port, disk = free_port(2), tmp_path_factory.mktemp("operated") / "disk"
    events = {"enable_kv_cache_events": True, "publisher": "null"}
    connector = on_disk(
        disk, enable_kv_events=True, internal_api_server_enabled=True, internal_api_server_port_start=port
    )
    for engine in running(spec_of(model_folder, connector, options={"kv_events_config": events})):
        with apis(port) as (scheduler, worker):
            scheduler.be_patient()
            yield Operated(engine, scheduler, worker, disk)


@pytest.fixture
def operated(operated_engine: Operated) -> Iterator[Operated]:
    with operated_engine.as_before():
        yield operated_engine
