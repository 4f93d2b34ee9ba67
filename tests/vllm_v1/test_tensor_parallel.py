"""Two tensor-parallel ranks, each in a process and with a pool of its own, on one folder."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from lmcache.testing.ports import free_port
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec
from tests.vllm_shared.prompts import CHUNK, prompt_of, same
from tests.vllm_v1.conftest import on_disk
from tests.vllm_v1.lookup_flow import ASYNC, BYPASS, SYNC
from tests.vllm_v1.operators import Api, apis
from tests.vllm_v1.tiers import num_files
from tests.vllm_v1.waiting import wait_until

PROMPT = prompt_of(900, seed="tensor parallel")
# Where a rank keeps its KV.
_POOL = b"result = app.state.lmcache_adapter.lmcache_engine.pool.config.folder"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("tensor-parallel") / "disk"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port(count=3)


@pytest.fixture(scope="module")
def halves(engine: EngineProcess, port: int) -> Iterator[list[Api]]:
    """The scheduler, and both ranks."""
    with apis(port, count=3) as found:
        for api in found:
            api.be_patient()
        yield found


@pytest.fixture(scope="module")
def engine(model_folder: pathlib.Path, disk: pathlib.Path, port: int) -> Iterator[EngineProcess]:
    """Its pools go with its processes."""
    spec = EngineSpec(
        model_folder,
        connector=on_disk(disk, internal_api_server_enabled=True, internal_api_server_port_start=port),
        options={"tensor_parallel_size": 2, "max_model_len": 2048},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "OMP_NUM_THREADS": "1"},
        multiprocess=True,
    )
    process = EngineProcess(spec)
    try:
        with apis(port, count=3) as (_, *workers):
            pools = {
                pathlib.Path(worker.ask("POST", "/run_script", files={"script": _POOL}).text) for worker in workers
            }
        assert [pool.exists() for pool in pools] == [True, True]
        yield process
    finally:
        process.close()
    wait_until(lambda: not any(pool.exists() for pool in pools), "the pools are gone")


def test_hit_equals_own_hit(engine: EngineProcess) -> None:
    engine.generate([PROMPT], 4)
    engine.forget()

    hit = engine.generate([PROMPT], 6)[0]

    engine.generate([PROMPT[: 3 * CHUNK]], 1, salts=["oracle"])
    own = engine.generate([PROMPT], 6, salts=["oracle"])[0]
    assert (hit.num_cached_tokens, own.num_cached_tokens) == (3 * CHUNK, 3 * CHUNK)
    assert same(hit, own)


def test_what_follows_a_hit_is_saved_once_the_ranks_are_sure_of_it(engine: EngineProcess) -> None:
    """The step that loads saves nothing; the next one does."""
    longer = prompt_of(1100 + CHUNK, seed="longer", shared=PROMPT[: 3 * CHUNK])
    engine.forget()
    assert engine.generate([longer], 4)[0].num_cached_tokens == 3 * CHUNK
    engine.forget()
    assert engine.generate([longer], 4)[0].num_cached_tokens == 5 * CHUNK


def test_both_ranks_write_to_one_folder(engine: EngineProcess, disk: pathlib.Path) -> None:
    """All that was computed above is there."""
    num_expected = 2 * (3 + 2 + 3)  # the prompt, what followed, and the oracle's, for each rank
    wait_until(lambda: num_files(disk) >= num_expected, "what was computed is stored on disk")
    assert num_files(disk) == num_expected


def num_cached(engine: EngineProcess, prompt: list[int] = PROMPT) -> int:
    engine.forget()
    return engine.generate([prompt], 1)[0].num_cached_tokens


def test_each_process_answers_on_a_port_of_its_own(halves: list[Api]) -> None:
    facts = [api.json("GET", "/meta?names=role,worker_id,world_size,kv_shape") for api in halves]
    assert [(fact["role"], fact["worker_id"]) for fact in facts] == [("scheduler", 0), ("worker", 0), ("worker", 1)]
    assert all(fact["world_size"] == 2 for fact in facts)
    assert all(fact["kv_shape"] == [4, 2, CHUNK, 1, 64] for fact in facts)
    for api in halves[1:]:
        info = api.json("GET", "/inference_info")["model_config"]
        assert (info["num_layers"], info["num_kv_heads"]) == (4, 2)
        assert api.json("GET", "/cache/kvcache/info")["layers"]


def test_prompt_hits_as_far_as_all_ranks_hold_it(engine: EngineProcess, halves: list[Api]) -> None:
    """One rank's L1 is emptied and asks no tier: it has nothing, and so has the prompt. The other keeps all it has."""
    _, one, other = halves
    assert num_cached(engine) == 3 * CHUNK
    held = other.metric("local_cpu_hot_cache_count")
    one.ask("PUT", "/freeze/enable")
    one.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    assert num_cached(engine) == 0
    assert one.json("GET", "/freeze/status")["freeze"]
    assert not other.json("GET", "/freeze/status")["freeze"]
    one.ask("PUT", "/freeze/disable")
    one.ask("PUT", "/bypass/add?backend_name=LocalDiskBackend")
    assert num_cached(engine) == 0
    assert num_cached(engine) == 3 * CHUNK  # stored anew a moment ago, in its L1
    one.ask("PUT", "/bypass/remove?backend_name=LocalDiskBackend")
    assert other.metric("local_cpu_hot_cache_count") >= held > 0


def test_lookups_change_on_all_processes(engine: EngineProcess, halves: list[Api]) -> None:
    scheduler, *workers = halves
    for worker in workers:
        worker.set(enable_async_loading=True)
        assert worker.recreate_lookup() == ("LMCacheLookupServer", "LMCacheAsyncLookupServer")
    scheduler.set(enable_async_loading=True)
    assert scheduler.recreate_lookup() == (SYNC, ASYNC)
    assert num_cached(engine) == 3 * CHUNK
    scheduler.set(enable_scheduler_bypass_lookup=True)
    assert scheduler.recreate_lookup() == (ASYNC, BYPASS)
    for worker in workers:
        worker.ask("DELETE", "/cache/clear?locations=LocalCPUBackend")
    assert num_cached(engine) == 3 * CHUNK
    workers[1].json("DELETE", "/cache/clear")
    assert num_cached(engine) == 0  # what one rank lacks on disk is no hit
    scheduler.set(enable_scheduler_bypass_lookup=False, enable_async_loading=False)
    assert scheduler.recreate_lookup() == (BYPASS, SYNC)
