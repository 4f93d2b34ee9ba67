"""Tiers and other views of the in-process configuration, as the components take them."""

from __future__ import annotations

import json

import pytest

from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.extra import read_extra
from lmcache.config.engine.loading import load_engine_config
from lmcache.config.engine.remote_urls import PLUGIN_TYPES, SCHEMES, adapter_of_url
from lmcache.config.engine.tiers import disk_tier, remote_tiers, tiers
from lmcache.config.engine.views import (
    chunk_statistics_settings,
    hash_algorithm,
    internal_api_settings,
    pool_settings,
)
from lmcache.core.hashing import ALGORITHM_NAMES
from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.registry import parse_adapter_object, type_names


def configured(extra_config: dict[str, object] | None = None, **values: object) -> LMCacheEngineConfig:
    given = {f"lmcache.{key}": value for key, value in values.items()}
    return load_engine_config({}, {**given, "lmcache.extra_config": extra_config})[0]


@pytest.mark.parametrize(
    ("url", "adapter"),
    [
        ("fs:///mnt/kv", {"type": "fs", "base_path": "/mnt/kv"}),
        ("fs://host:0/mnt/kv%20x", {"type": "fs", "base_path": "/mnt/kv x"}),
        ("file:///mnt/kv", {"type": "fs", "base_path": "/mnt/kv"}),
        ("s3://bucket/a", {"type": "s3", "s3_endpoint": "s3://bucket/a"}),
        ("gs://bucket", {"type": "s3", "s3_endpoint": "gs://bucket"}),
        ("s3://b-x.s3.eu-west-1.amazonaws.com/a", {"type": "s3", "s3_endpoint": "b-x.s3.eu-west-1.amazonaws.com/a"}),
        ("redis://h", {"type": "redis", "host": "h", "port": 6379}),
        ("resp://h:1", {"type": "redis", "host": "h", "port": 1}),
        ("redis://:p%40@[::1]:2/3", {"type": "redis", "host": "::1", "port": 2, "password": "p@", "db": 3}),
        ("rediss://u:p@h", {"type": "redis", "host": "h", "port": 6379, "username": "u", "password": "p", "tls": True}),
        ("valkeys://h:1", {"type": "redis", "host": "h", "port": 1, "tls": True}),
        ("unix:///run/redis.sock", {"type": "redis", "unix_socket_path": "/run/redis.sock"}),
        ("redis-cluster://:p@a:1,b", {"type": "redis", "nodes": ["a:1", "b:6379"], "password": "p"}),
    ],
)
def test_urls(url: str, adapter: dict[str, object]) -> None:
    assert adapter_of_url(url) == adapter


@pytest.mark.parametrize(
    "url",
    ["lm://h:1", "h:1", "", "redis://", "redis://h:x", "redis://h:99999", "redis://h/x", "redis://h/?x=1", "redis://[::1",
     "redis-cluster://", "unix://", "fs:///a#b"],
)  # fmt: skip
def test_urls_that_name_no_tier(url: str) -> None:
    with pytest.raises(ConfigError, match="remote_url"):
        adapter_of_url(url)


def test_errors_do_not_repeat_passwords() -> None:
    for url in ("redis://u:hunter2@h:x", "redis://u:hunter2@[::1", "redis://u:hunter2@h/db", "lm://u:hunter2@h"):
        with pytest.raises(ConfigError) as caught:
            adapter_of_url(url)
        assert "hunter2" not in str(caught.value)


def test_every_kind_of_tier_is_one_that_the_registry_knows() -> None:
    samples = {"s3": "s3://bucket", "gs": "gs://bucket", "az": "az://container", "unix": "unix:///s"}
    for scheme in SCHEMES:
        adapter = adapter_of_url(samples.get(scheme, f"{scheme}://host:1/1"))
        if scheme == "s3":
            adapter["s3_region"] = "x"
        if scheme == "redis-cluster":
            adapter.pop("db", None)
        assert parse_adapter_object(adapter, scheme).type == adapter["type"]
    assert set(PLUGIN_TYPES) <= set(type_names())


def test_the_disk_tier() -> None:
    config = configured({"use_odirect": True}, local_disk="file:///a, /b", max_local_disk_size=2.5)
    folders = []
    for device in range(3):
        tier = disk_tier(config, device)
        assert tier is not None
        spec = parse_adapter_object(tier.adapter, tier.name)
        assert (tier.name, spec.type, spec.settings.max_capacity_gb) == ("LocalDiskBackend", "fs", 2.5)
        assert spec.settings.use_odirect
        assert spec.eviction is not None
        assert (spec.eviction.eviction_policy, spec.eviction.trigger_watermark) == ("LRU", 1.0)
        folders.append(spec.settings.base_path)
    assert folders == ["/a", "/b", "/a"]
    assert disk_tier(configured(local_disk="/a")) is None
    assert disk_tier(configured(max_local_disk_size=1)) is None


@pytest.mark.parametrize(
    "key", ["remote_storage_plugin.fs.base_path", "fs_base_path", "remote_storage_plugin.fs.fs_base_path"]
)
def test_the_fs_plugin(key: str) -> None:
    extra: dict[str, object] = {key: "/a", "fs_connector_relative_tmp_dir": "t", "fs_connector_use_odirect": True}
    (tier,) = remote_tiers(configured(extra, remote_storage_plugins=["fs"]))
    spec = parse_adapter_object(tier.adapter, tier.name)
    assert (tier.name, spec.settings.base_path, spec.settings.relative_tmp_dir) == ("RemoteBackend-fs", "/a", "t")
    assert spec.settings.use_odirect


def test_settings_of_a_plugin_go_to_that_plugin_alone() -> None:
    extra: dict[str, object] = {
        "remote_storage_plugin.redis.host": "h", "remote_storage_plugin.redis.port": 1, "fs_base_path": "/general",
        "remote_storage_plugin.fs.base_path": "/own", "s3_region": "r", "aws_access_key_id": "i",
        "aws_secret_access_key": "hunter2",
    }  # fmt: skip
    config = configured(extra, remote_storage_plugins="fs,redis,fs", remote_url="s3://bucket")
    found = remote_tiers(config)
    assert [tier.name for tier in found] == ["RemoteBackend-fs", "RemoteBackend-redis", "RemoteBackend"]
    specs = [parse_adapter_object(tier.adapter, tier.name) for tier in found]
    assert specs[0].settings.base_path == "/own"
    assert specs[1].settings.host == "h"
    assert (specs[2].settings.s3_region, specs[2].settings.aws_secret_access_key) == ("r", "hunter2")
    assert "hunter2" not in repr(found)


def test_the_disk_is_asked_before_remote_tiers() -> None:
    config = configured(local_disk="/a", max_local_disk_size=1, remote_url="fs:///b")
    assert [tier.name for tier in tiers(config)] == ["LocalDiskBackend", "RemoteBackend"]
    assert tiers(configured()) == ()


def test_a_folder_in_the_url_wins_over_the_general_one() -> None:
    extra: dict[str, object] = {"fs_base_path": "/general"}
    (named,) = remote_tiers(configured(extra, remote_url="fs://h:1/own"))
    (unnamed,) = remote_tiers(configured(extra, remote_url="fs://h:1"))
    assert (named.adapter["base_path"], unnamed.adapter["base_path"]) == ("/own", "/general")


def test_serdes() -> None:
    extra: dict[str, object] = {"fs_base_path": "/a", "remote_storage_plugin.fs.serde": {"type": "int8"}}
    config = configured(extra, remote_storage_plugins="fs", remote_url="fs:///b", remote_serde="fp8")
    plugin, by_url = (parse_adapter_object(tier.adapter, tier.name) for tier in remote_tiers(config))
    assert [spec.serde[0].type for spec in (plugin, by_url)] == ["int8", "fp8"]
    assert "serde" not in remote_tiers(configured(remote_url="fs:///b"))[0].adapter


def test_the_pool() -> None:
    pool = pool_settings(configured(max_local_cpu_size=1.5, reserve_local_cpu_size=2))
    assert (pool.size_bytes, pool.reserve_bytes) == (GIB * 3 // 2, 2 * GIB)
    assert pool_settings(configured(max_local_cpu_size=-1)).size_bytes == 0
    config = configured({"first_rank_max_local_cpu_size": 3})
    assert [pool_settings(config, is_only).size_bytes for is_only in (False, True)] == [5 * GIB, 3 * GIB]


@pytest.mark.parametrize("name", ["builtin", "blake3", "sha256_cbor"])
def test_the_hash_is_one_that_there_is(name: str) -> None:
    assert hash_algorithm(configured(pre_caching_hash_algorithm=name)) in ALGORITHM_NAMES


def test_the_internal_api() -> None:
    plain = internal_api_settings(configured(internal_api_server_enabled=True))
    assert [plain.port(index) for index in (0, 1, 2)] == [6999, 7000, 7001]
    assert plain.serves(0)
    assert plain.serves(9)
    assert plain.socket_path(0) is None
    assert not internal_api_settings(configured()).serves(0)
    config = configured(
        {"internal_api_server_access_log": "false", "internal_api_server_log_level": "INFO"},
        internal_api_server_enabled=True, internal_api_server_include_index_list="0,2",
        internal_api_server_socket_path_prefix="/run/x/api", script_allowed_imports="math,os.path",
    )  # fmt: skip
    api = internal_api_settings(config)
    assert [api.serves(index) for index in (0, 1, 2)] == [True, False, True]
    assert api.socket_path(1) == "/run/x/api_7000"
    assert (api.is_access_logged, api.log_level) == (False, "info")
    assert (api.scripts.allowed_imports, api.scripts.timeout_s) == (("math", "os.path"), 30.0)


def test_statistics() -> None:
    extra: dict[str, object] = {
        "chunk_statistics_async_queue_capacity": 5,
        "chunk_statistics_mem_bf_expected_chunks": "7",
    }
    statistics = chunk_statistics_settings(configured(extra, chunk_statistics_strategy="file_hash"))
    assert (statistics.strategy, statistics.queue_capacity, statistics.hashes_early) == ("file_hash", 5, False)
    assert statistics.extra.chunk_statistics_mem_bf_expected_chunks == 7
    assert not statistics.is_started


def test_extra_settings_have_defaults_and_do_not_change() -> None:
    extra = read_extra({"lookup_backoff_time": "0.5", "plug_in_key": object()})
    assert (extra.lookup_backoff_time, extra.ping_interval, extra.save_only_first_rank) == (0.5, 30.0, None)
    with pytest.raises(AttributeError):
        extra.ping_interval = 1.0
    assert read_extra(json.loads("{}")).chunk_statistics_file_output_dir == "./chunk_hashes"
