"""Hits from a disk tier, after vLLM was started anew, and with an L1 that keeps nothing."""

from __future__ import annotations

import json
import pathlib
import time

from lmcache.testing.vllm_engine import EngineProcess
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import prompt_of, same
from tests.vllm_v1.conftest import on_disk, opened, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.tiers import num_files, wait_until_stored
from tests.vllm_v1.waiting import wait_until

PROMPT = prompt_of(1100, seed=60)
NUM_CHUNKS = 4


def test_hit_from_disk_after_a_restart(model_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The second engine is told of the disk by a file and a variable, as users do."""
    with opened(model_folder, on_disk(tmp_path / "disk")) as engine:
        engine.store(PROMPT)
        wait_until_stored(engine)
        usage = engine.usage()
        assert usage["LocalCPUBackend"] == NUM_CHUNKS * 512 * 1024
        assert usage["LocalDiskBackend"] >= usage["LocalCPUBackend"]
    assert num_files(tmp_path / "disk") == NUM_CHUNKS
    settings = tmp_path / "lmcache.yaml"
    settings.write_text(f"chunk_size: 256\nlocal_disk: file://{tmp_path / 'disk'}\nmax_local_disk_size: 3\n")
    connector = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    environment = {
        "LMCACHE_CONFIG_FILE": str(settings), "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.125",
        "LMCACHE_LOOKUP_TIMEOUT_MS": "30000",
    }  # fmt: skip
    with opened(model_folder, connector, environment=environment) as engine:
        hit = engine.one(PROMPT)
        assert hit.num_cached_tokens == NUM_CHUNKS * 256
        assert same(hit, engine.prefix_hit(PROMPT, NUM_CHUNKS * 256))
        # It is in L1 from then on.
        assert engine.usage()["LocalCPUBackend"] >= NUM_CHUNKS * 512 * 1024
        engine.check_nothing_held()


def test_l1_that_keeps_nothing_and_a_remote_folder(model_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    extra = {"remote_storage_plugin.fs.base_path": str(tmp_path / "remote")}
    connector = v1_connector(local_cpu=False, remote_storage_plugins=["fs"], extra_config=json.dumps(extra))
    with opened(model_folder, connector) as engine:
        engine.store(PROMPT)
        wait_until_stored(engine)
        wait_until(lambda: engine.usage()["LocalCPUBackend"] == 0, "L1 is empty")
        assert num_files(tmp_path / "remote") == NUM_CHUNKS
        hit = engine.hit(PROMPT)
        assert hit.num_cached_tokens == NUM_CHUNKS * 256
        engine.check_nothing_held()
        assert engine.usage()["LocalCPUBackend"] == 0
        assert same(hit, engine.prefix_hit(PROMPT, NUM_CHUNKS * 256))


def test_pool_of_a_killed_engine_is_removed_by_the_next(model_folder: pathlib.Path) -> None:
    process = EngineProcess(spec_of(model_folder, v1_connector()))
    folder = pathlib.Path(EmbeddedDriver(process).pool_folder() or "")
    process.kill()
    assert (folder / "pool").exists()
    # The next start leaves young folders alone: it cannot tell them from those that are just being made.
    from lmcache.embedded.pool import sweep_private_pools

    sweep_private_pools(wall_clock=lambda: time.time() + 60)
    assert not folder.exists()
