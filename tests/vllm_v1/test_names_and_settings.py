"""What users write, and what they are told."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.testing.vllm_engine import EngineProcess
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import new_salt, prompt_of
from tests.vllm_v1.conftest import running, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver


def test_vllm_uses_our_class_under_its_own_name(engine: EmbeddedDriver) -> None:
    names = engine.run(
        "wrapper = scheduler.connector\n"
        "result = type(wrapper).__module__, type(wrapper._lmcache_engine).__module__,"
        " scheduler.recompute_kv_load_failures"
    )
    assert names == (
        "vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector",
        "lmcache.integration.vllm.vllm_v1_adapter",
        True,
    )


def test_settings_that_do_nothing_are_named(model_folder: pathlib.Path) -> None:
    connector = v1_connector(chunk_sice=128, blend_min_tokens=7)
    for engine in running(spec_of(model_folder, connector)):
        lines = engine.log_lines()
    assert any("chunk_sice" in line and "did you mean chunk_size" in line for line in lines)
    assert any("blend_min_tokens" in line and "has no effect" in line for line in lines)


def test_chunks_that_do_not_fit_vllms_blocks_end_the_start(model_folder: pathlib.Path) -> None:
    text = "chunk_size 192 is not a multiple of vLLM's block size 128: set chunk_size to 128"
    with pytest.raises(RuntimeError, match=text):
        EngineProcess(spec_of(model_folder, v1_connector(chunk_size=192)))


def test_vllms_own_adapter_is_answered_with_one_line(model_folder: pathlib.Path) -> None:
    connector = v1_connector()
    connector["kv_connector_extra_config"]["use_native"] = True
    with pytest.raises(RuntimeError, match="leave `use_native` out of kv_connector_extra_config"):
        EngineProcess(spec_of(model_folder, connector))


def test_pool_without_room_is_declined_with_one_line(model_folder: pathlib.Path) -> None:
    for engine in running(spec_of(model_folder, v1_connector(max_local_cpu_size=1e6))):
        lines = [line for line in engine.log_lines() if "declines" in line]
        assert lines
        assert all("max_local_cpu_size asks for 980.4 TiB in /dev/shm" in line for line in lines)
        assert engine.one(prompt_of(300, seed=71)).num_cached_tokens == 0


def test_short_hits_are_left_alone(engine: EmbeddedDriver) -> None:
    """They count as held all the same: nothing is stored twice."""
    prompt, salt = prompt_of(600, seed=72), new_salt()
    engine.store(prompt, salt)
    engine.run("half._config.set('min_retrieve_tokens', 513)")
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    engine.run("half._config.set('min_retrieve_tokens', 512)")
    assert engine.hit(prompt, salt).num_cached_tokens == 512
    engine.run("half._config.set('min_retrieve_tokens', 0)")


def test_events_tell_what_was_stored(engine: EmbeddedDriver) -> None:
    """As vLLM's scheduler would publish them."""
    prompt, salt = prompt_of(600, seed=73), new_salt()
    engine.run(
        "engine.told = []\n"
        "take = scheduler.connector.take_events\n"
        "def spy():\n"
        "    events = list(take())\n"
        "    engine.told += events\n"
        "    return events\n"
        "scheduler.connector.take_events = spy\n"
    )
    engine.store(prompt, salt)
    engine.hit(prompt, salt)
    told = engine.run(
        "del scheduler.connector.take_events\n"
        "result = [(e.block_hashes, e.parent_block_hash, list(e.token_ids), e.block_size, e.medium)"
        " for e in engine.told]"
    )
    first, second = told
    assert first[1:] == (None, prompt[:256], 256, "LMCACHE")
    assert second[1:] == (first[0][0], prompt[256:512], 256, "LMCACHE")


def test_key_is_that_of_the_server_mode(engine: EmbeddedDriver) -> None:
    """The root comes from the same facts and layouts, in the same form."""
    root = engine.run(
        "import json, msgspec\n"
        "from lmcache.core.hashing import make_algorithm\n"
        "from lmcache.engine.registry import ClientRegistry\n"
        "from lmcache.core.layout import KVLayout\n"
        "import time\n"
        "registry = ClientRegistry(make_algorithm('blake3'), 256, time.monotonic)\n"
        "layout = msgspec.json.decode(msgspec.json.encode(worker.introduce()), type=KVLayout)\n"
        "name = worker.engine.rank.model_name\n"
        "registry.add_worker(1, b'', 'e', name, 1, 0, layout)\n"
        "facts = json.dumps(half._facts, sort_keys=True).encode()\n"
        "_, found = registry.add_scheduler(2, b'', 'e', name, 1, facts, b'', False)\n"
        "result = found.root == half.find_root(), found.rank_groups() == [worker.engine.rank.rank_group]"
    )
    assert root == (True, True)


def test_engine_that_only_produces_stores_and_does_not_load(model_folder: pathlib.Path) -> None:
    prompt = prompt_of(600, seed=74)
    for engine in running(spec_of(model_folder, {**v1_connector(), "kv_role": "kv_producer"})):
        engine.store(prompt)
        assert engine.usage()["LocalCPUBackend"] == 2 * 512 * 1024
        assert engine.hit(prompt).num_cached_tokens == 0
