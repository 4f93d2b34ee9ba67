"""How vLLM finds the connector, and what it is told about settings that cannot be kept."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from lmcache.errors import ConfigError
from lmcache.integration.vllm.mp_config import MPConnectorConfig, check_transfer_mode, parse_mp_config
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import patient_connector
from tests.conftest import new_pool_folder
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of

OURS = "lmcache.integration.vllm.lmcache_mp_connector.LMCacheMPConnector"


def test_built_in_name_and_module_path_give_our_class(main_engine: Driver, sync_engine: Driver) -> None:
    assert main_engine.state["class"] == OURS
    assert sync_engine.state["class"] == OURS


def test_policy_becomes_recompute_where_nobody_chose(main_engine: Driver, sync_engine: Driver) -> None:
    assert main_engine.state["policy"] == "recompute"
    assert main_engine.run("result = scheduler.recompute_kv_load_failures") is True
    assert sync_engine.state["policy"] == "fail"
    assert sync_engine.run("result = scheduler.recompute_kv_load_failures") is False


def test_chunk_size_that_blocks_do_not_divide_is_refused_at_start(model_folder: pathlib.Path) -> None:
    server = CacheServer(new_pool_folder(), chunk_size=192, pool_bytes=64 << 20)
    server.start()
    try:
        with pytest.raises(RuntimeError, match=r"192.*128|128.*192"):
            EngineProcess(spec_of(model_folder, patient_connector(server.port)))
    finally:
        server.kill()
        shutil.rmtree(server.folder, ignore_errors=True)


def test_unknown_keys_are_named_with_the_nearest_known() -> None:
    _, warnings = parse_mp_config({"lmcache.mp.laod_mode": "sync", "lmcache.mp.qqqq": 1, "other.key": 2})
    assert len(warnings) == 2
    assert "lmcache.mp.laod_mode" in warnings[0]
    assert "lmcache.mp.load_mode" in warnings[0]
    assert "lmcache.mp.qqqq" in warnings[1]


def test_keys_without_meaning_are_named_only_where_they_ask_for_something() -> None:
    _, warnings = parse_mp_config({"lmcache.mp.lazy_offload": True, "lmcache.mp.eager_prefetch": False})
    assert len(warnings) == 1
    assert "lmcache.mp.lazy_offload" in warnings[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 0), ("port", 65536), ("port", "x"), ("port", 5555.5), ("host", ""), ("host", 7),
        ("server_urls", [""]), ("server_urls", 5), ("mq_timeout", 0), ("mq_timeout", "soon"), ("mq_timeout", True),
        ("mq_timeout", None), ("heartbeat_interval", 0.001), ("hash_algorithm", "md5"), ("hash_algorithm", None),
        ("save_decode_cache", "yes"), ("save_decode_cache", 2), ("model_version", ""), ("model_version", 1),
        ("load_mode", "eager"), ("copy_threads", 0), ("copy_threads", 65), ("copy_threads", 1.5), ("lookup_wait", -1),
        ("lookup_wait", float("nan")), ("lookup_wait", 2), ("lookup_timeout", 0), ("load_timeout", 0),
        ("load_timeout", float("inf")), ("store_timeout", []), ("pending_store_gb", -1), ("held_blocks_fraction", 1.5),
        ("held_blocks_fraction", "half"), ("token_file", "/nowhere/token"), ("token_file", ""),
        ("load_failure_policy", "ignore"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_with_key_and_value(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mp_config({f"lmcache.mp.{key}": value})
    assert f"lmcache.mp.{key}" in str(caught.value)


def test_every_good_value_arrives(tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    given = {
        "server_urls": "tcp://a:1, tcp://b:2", "token_file": str(tmp_path / "token"), "mq_timeout": "2",
        "heartbeat_interval": 3, "hash_algorithm": "sha256_cbor", "save_decode_cache": "true", "model_version": "v1",
        "load_mode": "sync", "copy_threads": "2", "lookup_wait": 0, "lookup_timeout": 4, "prefetch_timeout": 8,
        "load_timeout": 5, "store_timeout": 6, "pending_store_gb": 7, "held_blocks_fraction": 0.5,
        "load_failure_policy": "fail",
    }  # fmt: skip
    config, warnings = parse_mp_config({f"lmcache.mp.{key}": value for key, value in given.items()})
    assert config == MPConnectorConfig(
        "tcp://a:1", "secret", 2.0, 3.0, "sha256_cbor", True, "v1", "sync", 2, 0.0, 4.0, 8.0, 5.0, 6.0, 7.0, 0.5, "fail"
    )
    assert len(warnings) == 1
    assert "2 servers" in warnings[0]


def test_transfer_mode_we_do_not_have_is_refused_wherever_it_is_set() -> None:
    check_transfer_mode({}, {})
    check_transfer_mode(
        {"lmcache.mp.mp_transfer_mode": "engine_driven"}, {"LMCACHE_MP_TRANSFER_MODE": "lmcache_driven"}
    )
    for extra, environment in (
        ({"lmcache.mp.mp_transfer_mode": "lmcache_driven"}, {}),
        ({}, {"LMCACHE_MP_TRANSFER_MODE": "lmcache_driven"}),
        ({"lmcache.mp.mp_transfer_mode": "no"}, {}),
    ):
        with pytest.raises(ConfigError, match="mp_transfer_mode"):
            check_transfer_mode(extra, environment)
