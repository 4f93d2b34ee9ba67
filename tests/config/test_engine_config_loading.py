"""The sources of the in-process configuration, and what is said of what cannot be honoured."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS
from lmcache.config.engine.loading import load_engine_config
from lmcache.errors import ConfigError

WriteFile = Callable[[str], str]

# As documented; `internal_api_server_host` as of the later release.
DEFAULTS = {
    "chunk_size": 256, "local_cpu": True, "max_local_cpu_size": 5.0, "local_cpu_use_hugepages": False,
    "reserve_local_cpu_size": 0.0, "local_disk": None, "local_disk_path_sharding": "by_gpu", "max_local_disk_size": 0.0,
    "remote_url": None, "remote_serde": "naive", "remote_storage_plugins": None, "storage_plugins": None,
    "use_layerwise": False, "save_decode_cache": False, "save_unfull_chunk": False,
    "pre_caching_hash_algorithm": "builtin",
    "retrieve_locations": None, "store_location": None, "blocking_timeout_secs": 10, "cache_policy": "LRU",
    "numa_mode": None,
    "enable_async_loading": False, "external_lookup_client": None, "lookup_timeout_ms": 3000,
    "lookup_server_worker_ids": None, "enable_scheduler_bypass_lookup": False, "hit_miss_ratio": None,
    "min_retrieve_tokens": 0, "priority_limit": None, "extra_config": None, "script_allowed_imports": None,
    "internal_api_server_enabled": False, "internal_api_server_host": "127.0.0.1",
    "internal_api_server_port_start": 6999,
    "internal_api_server_include_index_list": None, "internal_api_server_socket_path_prefix": None,
    "enable_chunk_statistics": False, "chunk_statistics_auto_start_statistics": False,
    "chunk_statistics_auto_exit_timeout_hours": 0.0, "chunk_statistics_auto_exit_target_unique_chunks": 0,
    "chunk_statistics_strategy": "memory_bloom_filter", "enable_lazy_memory_allocator": False,
    "enable_kv_events": False,
    "pin_timeout_sec": 300, "pin_check_interval_sec": 30, "py_enable_gc": True, "enable_controller": False,
    "controller_pull_url": None, "controller_reply_url": None, "lmcache_worker_ports": None, "enable_blending": False,
    "blend_min_tokens": 256, "blend_special_str": " # ", "enable_p2p": False, "enable_pd": False,
    "runtime_plugin_locations": None, "remote_config_url": None, "app_id": None, "run_script_api_enabled": False,
    "enable_hidden_state_cache": False, "max_hidden_state_cpu_size": 2.0, "hidden_state_layers": None,
    "hidden_states_retrieve_mode": "prefix_strict",
}  # fmt: skip


@pytest.fixture
def write_file(tmp_path: pathlib.Path) -> WriteFile:
    def write(content: str) -> str:
        path = tmp_path / "engine.yaml"
        path.write_text(content)
        return str(path)

    return write


def load(environ: dict[str, str] | None = None, **extra: object) -> LMCacheEngineConfig:
    """Nothing to complain about."""
    config, warnings = load_engine_config(environ or {}, extra)
    assert warnings == []
    return config


def warnings_of(environ: dict[str, str] | None = None, extra: dict[str, object] | None = None) -> list[str]:
    return load_engine_config(environ or {}, extra or {})[1]


def test_every_documented_key_has_its_documented_default() -> None:
    config = load()
    assert {key: config.get(key) for key in DEFAULTS} == DEFAULTS
    ours = _CONFIG_DEFINITIONS.keys() - DEFAULTS.keys() - {"lmcache_instance_id"}
    assert all(key.startswith("internal_api_server_") for key in ours)


def test_a_later_source_wins(write_file: WriteFile) -> None:
    path = write_file("chunk_size: 128\nmin_retrieve_tokens: 1\nlookup_timeout_ms: 1\n")
    environ = {"LMCACHE_CONFIG_FILE": path, "LMCACHE_MIN_RETRIEVE_TOKENS": "2", "LMCACHE_LOOKUP_TIMEOUT_MS": "2"}
    config, warnings = load_engine_config(environ, {"lmcache.lookup_timeout_ms": 3, "unrelated": 1})
    assert (config.chunk_size, config.min_retrieve_tokens, config.lookup_timeout_ms) == (128, 2, 3)
    assert warnings == []


def test_a_file_may_be_named_apart_from_the_environment(write_file: WriteFile) -> None:
    path = write_file("chunk_size: 64")
    assert load_engine_config({"LMCACHE_CONFIG_FILE": "/nowhere"}, config_file=path)[0].chunk_size == 64


def test_yaml_has_lists_objects_and_nothing(write_file: WriteFile) -> None:
    content = "remote_storage_plugins: [fs]\nlookup_server_worker_ids: [0, 2]\nlocal_disk: null\n"
    content += "extra_config:\n  fs_base_path: /x\n"
    config, warnings = load_engine_config({}, config_file=write_file(content))
    assert warnings == []
    assert (config.remote_storage_plugins, config.lookup_server_worker_ids) == (("fs",), (0, 2))
    assert config.extra_config == {"fs_base_path": "/x"}
    assert load_engine_config({}, config_file=write_file(""))[0].chunk_size == 256


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("a: [", "line 1"), ("- a", "keys and values"), ("1: 2", "keys and values"), ("a: 2001-99-99", "not valid YAML"),
     ("\0", "not valid YAML"), ("a: !!python/object:os.system x", "line 1"), ("[" * 5000, "not valid YAML")],
)  # fmt: skip
def test_files_that_hold_no_settings_are_refused(write_file: WriteFile, content: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_engine_config({}, config_file=write_file(content))


_BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(_BOMB + "extra_config: {x: *i}", "more than 100000 values"), (_BOMB + "local_disk: *i", "more than 100000"),
     ("extra_config: &a {x: *a}", "more than 100000 values"), ("# " + "x" * (256 << 10), "larger than 262144 bytes")],
    ids=["object", "text", "circle", "size"],
)  # fmt: skip
def test_files_that_would_take_all_memory_are_refused(write_file: WriteFile, content: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_engine_config({}, config_file=write_file(content))


def test_only_regular_files_are_read(tmp_path: pathlib.Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero", "/dev/null"):
        with pytest.raises(ConfigError, match=f"{path} cannot be read: it is not a regular file"):
            load_engine_config({}, config_file=path)
    for path in (str(tmp_path), "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_engine_config({}, config_file=path)


def test_what_a_broken_file_holds_is_not_repeated(write_file: WriteFile) -> None:
    with pytest.raises(ConfigError) as caught:
        load_engine_config({}, config_file=write_file("chunk_size: 1\npassword: [hunter2\n"))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_engine_config({"LMCACHE_CONFIG_FILE": str(tmp_path / "none.yaml")})


def test_unknown_keys_are_named_with_the_nearest(write_file: WriteFile) -> None:
    path = write_file("chunk_sise: 64\nzzz: 1\n")
    config, warnings = load_engine_config({"LMCACHE_LOCAL_DISC": "/x", "LMCACHE_LOG_LEVEL": "INFO"}, config_file=path)
    assert config.chunk_size == 256
    assert warnings == [
        f"unknown key chunk_sise in {path} is ignored; did you mean chunk_size?",
        f"unknown key zzz in {path} is ignored",
        "unknown variable LMCACHE_LOCAL_DISC is ignored; did you mean LMCACHE_LOCAL_DISK?",
    ]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("LMCACHE_MAX_LOCAL_DSK", "LMCACHE_MAX_LOCAL_DISK_SIZE"), ("LMCACHE_MAX_LOCAL_CPU", "LMCACHE_MAX_LOCAL_CPU_SIZE"),
     ("LMCACHE_REMOTE_STORAGE", "LMCACHE_REMOTE_STORAGE_PLUGINS")],
)  # fmt: skip
def test_a_variable_cut_short_is_named_with_the_whole(variable: str, meant: str) -> None:
    assert warnings_of({variable: "x"}) == [f"unknown variable {variable} is ignored; did you mean {meant}?"]


@pytest.mark.parametrize(
    "variable",
    ["LMCACHE_SERVICE_PORT_HTTP", "LMCACHE_PORT_5555_TCP_ADDR", "LMCACHE_SERVER_SERVICE_HOST",
     "LMCACHE_TRACK_USAGE", "LMCACHE_RESP_HOST", "LMCACHE_MP_TRANSFER_MODE", "LMCACHE_USE_UPSTREAM_MP",
     "LMCACHE_COORDINATOR_URL", "LMCACHE_LOG_LEVEL"],
)  # fmt: skip
def test_variables_of_other_parts_are_left_alone(variable: str) -> None:
    assert warnings_of({variable: "x"}) == []


def test_keys_for_a_server_are_named_once() -> None:
    lines = warnings_of(extra={"lmcache.mp.host": "h", "lmcache.mp.port": 1, "lmcache.chunk_sise": 1})
    assert len(lines) == 2
    assert "LMCacheMPConnector" in lines[0]
    assert "did you mean chunk_size" in lines[1]


def test_what_cannot_be_read_leaves_the_default_or_null() -> None:
    config, warnings = load_engine_config({"LMCACHE_CHUNK_SIZE": "many", "LMCACHE_HIT_MISS_RATIO": "half"})
    assert (config.chunk_size, config.hit_miss_ratio) == (256, None)
    assert "LMCACHE_CHUNK_SIZE is ignored" in warnings[0]
    assert warnings[0].endswith("chunk_size is 256")
    assert warnings[1].endswith("hit_miss_ratio is null")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("chunk_size", "0", "from 1"),
        ("hit_miss_ratio", "1.5", "from 0 to 1"),
        ("min_retrieve_tokens", "-1", "at least 0"),
        ("cache_policy", "ARC", "LRU, LFU, FIFO, MRU"),
        ("remote_serde", "cachegen", "remote_storage_plugin.<name>.serde"),
        ("remote_url", "mooncakestore://h:1", "schemes fs"),
        ("remote_storage_plugins", "fs,infinistore", "a list of fs, s3, redis"),
        ("retrieve_locations", "NixlStorageBackend", "LocalCPUBackend, LocalDiskBackend"),
        ("script_allowed_imports", "os; rm", "dotted names"),
        ("extra_config", '{"lookup_backoff_time": "soon"}', "extra_config lookup_backoff_time must be a number"),
        ("extra_config", '{"ping_timeout": 0}', "extra_config ping_timeout must be a number above 0"),
        ("pre_caching_hash_algorithm", "sha1", "blake3, sha256_cbor"),
    ],
)
def test_what_cannot_be_honoured_stops_the_start(key: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"LMCACHE_{key.upper()}: .*{complaint}"):
        load_engine_config({f"LMCACHE_{key.upper()}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("external_lookup_client", "mooncakestore://h"), ("enable_pd", "true"), ("enable_xpyd", "true"),
     ("enable_p2p", "1"),
     ("enable_blending", "true"), ("enable_controller", "true"), ("storage_plugins", "a"), ("external_backends", "a"),
     ("runtime_plugin_locations", "/x"), ("plugin_locations", "/x"), ("remote_config_url", "http://x"),
     ("enable_hidden_state_cache", "true")],
)  # fmt: skip
def test_what_asks_for_parts_that_are_not_there_is_refused_with_the_reason(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="which this release does not have"):
        load_engine_config({f"LMCACHE_{key.upper()}": value})
    assert load_engine_config({f"LMCACHE_{key.upper()}": "false" if value in ("true", "1") else ""})[1] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("blend_min_tokens", "1"), ("controller_url", "x"), ("lmcache_worker_port", "8000"), ("app_id", "x"),
     ("numa_mode", "auto"), ("local_cpu_use_hugepages", "true"), ("enable_lazy_memory_allocator", "true"),
     ("run_script_api_enabled", "true"), ("max_hidden_state_cpu_size", "3"), ("pd_role", "sender"),
     ("nixl_role", "sender"),
     ("p2p_host", "h"), ("gds_path", "/x"), ("maru_path", "x"), ("blend_check_layers", "1"),
     ("lazy_memory_step_ratio", "0.2"),
     ("pre_caching_hash_algorithm", "builtin"), ("local_disk", "/x"), ("max_local_disk_size", "1"),
     ("remote_serde", "zstd"), ("extra_config", '{"save_chunk_meta": false}'),
     ("extra_config", '{"lookup_backof_time": 1}'),
     ("max_local_cpu_size", "0")],
)  # fmt: skip
def test_what_does_nothing_is_told_in_one_line(key: str, value: str) -> None:
    lines = warnings_of({f"LMCACHE_{key.upper()}": value})
    assert len(lines) == 1
    assert "\n" not in lines[0]


def test_a_family_of_keys_is_told_in_one_line() -> None:
    lines = warnings_of({"LMCACHE_PD_ROLE": "sender", "LMCACHE_NIXL_BUFFER_SIZE": "1", "LMCACHE_PD_PEER_HOST": ""})
    assert len(lines) == 1
    assert "pd_role, nixl_buffer_size" in lines[0]


def test_a_key_wins_over_its_alias() -> None:
    extra: dict[str, object] = {"lmcache.controller_url": "b", "lmcache.controller_pull_url": "a"}
    config, warnings = load_engine_config({}, extra)
    assert config.controller_pull_url == "a"
    assert any("controller_url" in line and "is given as well" in line for line in warnings)


def test_what_is_overridden_is_not_judged(write_file: WriteFile) -> None:
    config, warnings = load_engine_config({"LMCACHE_ENABLE_PD": "false"}, config_file=write_file("enable_pd: true"))
    assert (config.enable_pd, warnings) == (False, [])


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"ENABLE_SCHEDULER_BYPASS_LOOKUP": "true"}, "none is configured"),
        ({"RETRIEVE_LOCATIONS": "LocalDiskBackend"}, "not configured .there are: LocalCPUBackend"),
        ({"STORE_LOCATION": "RemoteBackend", "REMOTE_STORAGE_PLUGINS": "fs"}, "needs a folder"),
        ({"INTERNAL_API_SERVER_SSL_KEYFILE": "/k"}, "needs internal_api_server_ssl_certfile"),
        ({"REMOTE_URL": "fs://host:0"}, "needs a folder"),
        ({"REMOTE_URL": "fs:///a,/b"}, "one folder"),
        ({"REMOTE_URL": "redis://host:port"}, "cannot be read"),
        ({"LOCAL_DISK": "/a,,/b", "MAX_LOCAL_DISK_SIZE": "1"}, "folders between commas"),
    ],
)
def test_combinations_that_cannot_be_honoured(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_engine_config({f"LMCACHE_{key}": value for key, value in environ.items()})


def test_combinations_that_can() -> None:
    config = load({
        "LMCACHE_REMOTE_URL": "fs:///a", "LMCACHE_ENABLE_SCHEDULER_BYPASS_LOOKUP": "true",
        "LMCACHE_RETRIEVE_LOCATIONS": "LocalCPUBackend,RemoteBackend", "LMCACHE_STORE_LOCATION": "RemoteBackend",
    })  # fmt: skip
    assert config.enable_scheduler_bypass_lookup


def test_an_api_that_others_reach_without_a_token_is_told() -> None:
    environ = {"LMCACHE_INTERNAL_API_SERVER_ENABLED": "true", "LMCACHE_INTERNAL_API_SERVER_HOST": "0.0.0.0"}
    assert "auth_token_file" in warnings_of(environ)[0]
    assert warnings_of({**environ, "LMCACHE_INTERNAL_API_SERVER_AUTH_TOKEN_FILE": "/t"}) == []
    assert warnings_of({**environ, "LMCACHE_INTERNAL_API_SERVER_SOCKET_PATH_PREFIX": "/s"}) == []
    assert warnings_of({**environ, "LMCACHE_INTERNAL_API_SERVER_ENABLED": "false"}) == []


def test_an_instance_without_a_name_gets_one() -> None:
    assert load_engine_config({}, make_id=lambda: "abc")[0].lmcache_instance_id == "lmcacheengineconfig_abc"
    assert load_engine_config({"LMCACHE_LMCACHE_INSTANCE_ID": "mine"})[0].lmcache_instance_id == "mine"
    assert load().lmcache_instance_id != load().lmcache_instance_id
