"""Two tensor-parallel ranks, each in a process and with a pool of its own, on one folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import pytest

from lmcache.embedded.pool import POOL_ROOT, PRIVATE_PREFIX
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec
from tests.vllm_shared.prompts import CHUNK, prompt_of, same
from tests.vllm_v1.conftest import v1_connector

_SETTLE_S = 20.0
PROMPT = prompt_of(900, seed="tensor parallel")


def pools() -> set[str]:
    return {path.name for path in POOL_ROOT.glob(f"{PRIVATE_PREFIX}*")}


def num_objects(folder: pathlib.Path) -> int:
    return sum(path.is_file() and path.stat().st_size > 100_000 for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("tensor-parallel") / "disk"


@pytest.fixture(scope="module")
def engine(model_folder: pathlib.Path, disk: pathlib.Path) -> Iterator[EngineProcess]:
    """Its pools go with its processes."""
    before = pools()
    spec = EngineSpec(
        model_folder,
        connector=v1_connector(local_disk=str(disk), max_local_disk_size=1.0),
        options={"tensor_parallel_size": 2, "max_model_len": 2048},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "OMP_NUM_THREADS": "1"},
        multiprocess=True,
    )
    process = EngineProcess(spec)
    try:
        assert len(pools() - before) == 2
        yield process
    finally:
        process.close()
    deadline = time.monotonic() + _SETTLE_S
    while pools() - before:
        assert time.monotonic() < deadline, "the pools are left behind"
        time.sleep(0.05)


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
    """Runs last: all that was computed above is there."""
    deadline = time.monotonic() + _SETTLE_S
    num_expected = 2 * (3 + 2 + 3)  # the prompt, what followed, and the oracle's, for each rank
    while num_objects(disk) < num_expected:
        assert time.monotonic() < deadline, num_objects(disk)
        time.sleep(0.05)
    assert num_objects(disk) == num_expected
