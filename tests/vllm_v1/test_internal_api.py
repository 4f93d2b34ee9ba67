"""Every endpoint of the internal API on a running vLLM: codes and shapes on the scheduler and on the worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lmcache.utils import COMMIT_ID, VERSION, get_version
from tests.internal_api.document_002 import BESIDES, DOCUMENTED
from tests.vllm_shared.prompts import CHUNK, prompt_of
from tests.vllm_v1.operators import Api, Operated
from tests.vllm_v1.waiting import wait_until

SETTINGS = "min_retrieve_tokens,save_decode_cache"
OK, BAD, NONE, NO_ENGINE = 200, 400, 404, 503
ERROR = frozenset({"error", "message"})
# Of answers that are texts, or bare JSON strings.
TEXT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """What each half answers. `keys`: of a good answer; errors have others."""

    method: str
    target: str
    on_worker: int
    on_scheduler: int
    keys: frozenset[str] = TEXT
    body: Any = None
    error_keys: frozenset[str] = ERROR

    @property
    def path(self) -> str:
        return self.target.split("?")[0]


def both(method: str, target: str, *keys: str, **more: Any) -> Call:
    return Call(method, target, OK, OK, frozenset(keys), **more)


def of_engine(method: str, target: str, *keys: str, **more: Any) -> Call:
    """The scheduler has no engine."""
    return Call(method, target, OK, NO_ENGINE, frozenset({"status", *keys}), **more)


_BYPASS = ("backend_name", "bypassed", "bypassed_backends")
_FREEZE, _HOT = ("freeze", "message"), ("hot_cache", "message")
_CHECK = ("slot_mapping_ranges", "chunk_size", "num_chunks", "chunk_checksums", "layerwise")
_LOADED = ("loaded_chunks", "total_files", "failed_keys", "config_path")
_PATH = "fs_chunks.yaml"
CALLS = (
    both("GET", "/lmc_version"), both("GET", "/commit_id"), both("GET", "/version"),
    both("GET", "/inference_info", "vllm_version", "lmcache_version", "vllm_config", "model_config", "cache_config"),
    both("GET", "/inference_info?format=any", "vllm_version", "lmcache_version", "vllm_config", "model_config",
         "cache_config"),
    both("GET", "/inference_version", "vllm_version"),
    both("GET", f"/conf?names={SETTINGS},none", *SETTINGS.split(",")),
    both("POST", "/conf", "updated", body={"min_retrieve_tokens": 512, "save_decode_cache": True}),
    both("POST", "/conf", "updated", body={}),
    Call("POST", "/conf", BAD, BAD, body=[], error_keys=frozenset({"error"})),
    Call("POST", "/conf", BAD, BAD, body={"min_retrieve_tokens": 0, "unknown_key": 1},
         error_keys=frozenset({"updated", "errors"})),
    both("GET", "/meta?names=worker_id,model_name,none", "worker_id", "model_name"),
    of_engine("DELETE", "/cache/clear", "num_removed"),
    of_engine("DELETE", "/cache/clear?locations=LocalCPUBackend&locations=None", "num_removed"),
    of_engine("POST", "/cache/store?tokens_mock=0,256", "num_tokens"),
    of_engine("POST", "/cache/retrieve?tokens_mock=0,256", "num_tokens", "num_retrieved"),
    Call("POST", "/cache/store", BAD, NO_ENGINE), Call("POST", "/cache/retrieve?tokens_mock=5,4", BAD, NO_ENGINE),
    Call("GET", "/cache/kvcache/check?slot_mapping=0,1,[4,6]&chunk_size=2", OK, NONE,
         frozenset({"status", *_CHECK})),
    Call("GET", "/cache/kvcache/check?slot_mapping=[0,3]&chunk_size=2&layerwise=true", OK, NONE,
         frozenset({"status", *_CHECK})),
    Call("GET", "/cache/kvcache/check", BAD, BAD),
    Call("GET", "/cache/kvcache/check?slot_mapping=a&chunk_size=2", BAD, BAD),
    Call("GET", "/cache/kvcache/check?slot_mapping=0", BAD, NONE),
    Call("GET", "/cache/kvcache/check?slot_mapping=99999999&chunk_size=1", BAD, NONE),
    both("POST", "/cache/kvcache/record_slot", "status", "kvcache_check_log_enabled"),
    Call("POST", "/cache/kvcache/record_slot?enabled=perhaps", BAD, BAD),
    Call("GET", "/cache/kvcache/info", OK, NONE, frozenset({"status", "num_layers", "layers"})),
    Call("POST", "/cache/load-fs-chunks", BAD, NO_ENGINE, body={"config_path": "/none.yaml"},
         error_keys=ERROR | {"config_path"}),
    Call("POST", "/cache/load-fs-chunks", 422, 422, body={}, error_keys=frozenset({"detail"})),
    of_engine("PUT", "/freeze/enable", *_FREEZE), of_engine("GET", "/freeze/status", *_FREEZE),
    of_engine("PUT", "/freeze/disable", *_FREEZE),
    of_engine("PUT", "/hot_cache/disable", *_HOT), of_engine("GET", "/hot_cache/status", *_HOT),
    of_engine("PUT", "/hot_cache/enable", *_HOT),
    both("GET", "/lookup/info", "client", "server", "role"),
    both("POST", "/lookup/create?dryrun=true", "new", "role", "dryrun"),
    both("POST", "/lookup/close", "old", "role"),
    Call("POST", "/lookup/close", BAD, BAD, error_keys=frozenset({"error", "role"})),
    Call("POST", "/lookup/recreate", BAD, BAD, error_keys=frozenset({"error", "role"})),
    both("POST", "/lookup/create", "new", "role"), both("POST", "/lookup/recreate", "old", "new", "role"),
    Call("POST", "/chunk_statistics/start", NO_ENGINE, BAD), Call("POST", "/chunk_statistics/stop", NO_ENGINE, BAD),
    Call("POST", "/chunk_statistics/reset", NO_ENGINE, BAD), Call("GET", "/chunk_statistics/status", NO_ENGINE, BAD),
    of_engine("GET", "/bypass/list", "bypassed_backends", "all_backends"),
    of_engine("PUT", "/bypass/add?backend_name=LocalDiskBackend", *_BYPASS, "was_already_bypassed"),
    of_engine("PUT", "/bypass/remove?backend_name=LocalDiskBackend", *_BYPASS, "was_bypassed"),
    Call("PUT", "/bypass/add", BAD, NO_ENGINE), Call("PUT", "/bypass/remove?backend_name=Foo", BAD, NO_ENGINE),
    Call("GET", "/backends", OK, NO_ENGINE, frozenset({"LocalCPUBackend", "LocalDiskBackend"})),
    of_engine("DELETE", "/backends/LocalDiskBackend", "message", "backends"),
    Call("DELETE", "/backends/Foo", NONE, NO_ENGINE, error_keys=frozenset({"status", "message", "backends"})),
    Call("DELETE", "/backends/LocalCPUBackend", BAD, NO_ENGINE),
    of_engine("POST", "/backends", "created", "backends"),
    of_engine("POST", "/backends/LocalDiskBackend/recreate", "recreated", "backends"),
    Call("POST", "/backends/Foo/recreate", NONE, NO_ENGINE, error_keys=frozenset({"status", "message", "backends"})),
    both("GET", "/env"), both("GET", "/loglevel"), both("GET", "/loglevel?logger_name=lmcache"),
    both("GET", "/metrics"), both("POST", "/metrics/reset"), both("GET", "/threads"),
    both("GET", "/periodic-threads", "summary", "threads"),
    Call("GET", "/periodic-threads/none", NONE, NONE, error_keys=frozenset({"error"})),
    both("GET", "/periodic-threads-health", "healthy", "unhealthy_count", "unhealthy_threads"),
    Call("POST", "/run_script", BAD, BAD, error_keys=TEXT),
)  # fmt: skip
_TEMPLATES = {"/backends/{name}": "/backends/Foo", "/backends/{name}/recreate": "/backends/Foo/recreate",
              "/periodic-threads/{thread_name}": "/periodic-threads/none"}  # fmt: skip


def test_every_route_is_called() -> None:
    called = {(call.method, call.path) for call in CALLS}
    assert {(method, _TEMPLATES.get(path, path)) for method, path in (*DOCUMENTED, *BESIDES)} <= called


@pytest.mark.parametrize("half", ["scheduler", "worker"])
def test_codes_and_shapes(operated: Operated, half: str) -> None:
    api: Api = getattr(operated, half)
    for call in CALLS:
        code = call.on_worker if half == "worker" else call.on_scheduler
        answer = api.ask(call.method, call.target, code, json=call.body)
        expected = call.keys if code == OK else ERROR if code == NO_ENGINE else call.error_keys
        is_json = answer.headers["content-type"] == "application/json"
        found = answer.json() if is_json else None
        keys = frozenset(found) if isinstance(found, dict) else TEXT
        # The reasons for settings that were refused stand beside the documented keys.
        assert keys - {"messages"} == expected, (call, answer.text)
        assert is_json or not expected
        if code == OK and "status" in call.keys:
            assert found["status"] == "success"
        if code == NO_ENGINE and not call.path.startswith("/chunk_statistics"):
            assert found["message"] == "LMCache engine not configured."


def test_versions(operated: Operated) -> None:
    for api in (operated.scheduler, operated.worker):
        assert api.json("GET", "/lmc_version") == VERSION
        assert api.json("GET", "/commit_id") == COMMIT_ID
        assert api.json("GET", "/version") == get_version()


def test_inference_info(operated: Operated) -> None:
    """Every documented key, on both; what this vLLM no longer has is null."""
    expected_version = operated.engine.run("import vllm; result = vllm.__version__")
    model = {
        "model": str(operated.engine.run("result = scheduler.vllm_config.model_config.model")),
        "dtype": "torch.bfloat16", "max_model_len": 4096, "vocab_size": 2000, "num_layers": 4,
        "num_attention_heads": 4, "num_kv_heads": 2, "head_size": 64,
    }  # fmt: skip
    for api in (operated.scheduler, operated.worker):
        assert api.json("GET", "/inference_version") == {"vllm_version": expected_version}
        info = api.json("GET", "/inference_info")
        assert info["vllm_version"] == expected_version
        assert info["lmcache_version"] == get_version()
        assert info["model_config"] == model
        assert info["model_config"]["model"] in info["vllm_config"]
        cache = info["cache_config"]
        assert set(cache) == {"block_size", "cache_dtype", "gpu_memory_utilization", "swap_space",
                              "enable_prefix_caching"}  # fmt: skip
        assert (cache["block_size"], cache["enable_prefix_caching"]) == (128, True)


def test_meta(operated: Operated) -> None:
    for api, role in ((operated.scheduler, "scheduler"), (operated.worker, "worker")):
        meta = api.json("GET", "/meta")
        assert set(meta) == {
            "model_name", "world_size", "local_world_size", "worker_id", "local_worker_id", "kv_dtype", "kv_shape",
            "use_mla", "role", "first_rank", "served_model_name", "chunk_size", "kv_layer_groups_manager", "engine_id",
            "kv_connector_extra_config",
        }  # fmt: skip
        assert (meta["role"], meta["world_size"], meta["worker_id"]) == (role, 1, 0)
        assert (meta["kv_shape"], meta["kv_dtype"], meta["chunk_size"]) == (
            [4, 2, CHUNK, 2, 64],
            "torch.bfloat16",
            CHUNK,
        )
        assert meta["kv_connector_extra_config"]["lmcache.local_disk"] == str(operated.disk)


def test_both_halves_go_by_one_name(operated: Operated) -> None:
    target = "/conf?names=lmcache_instance_id"
    names = [api.json("GET", target)["lmcache_instance_id"] for api in (operated.scheduler, operated.worker)]
    assert names[0] == names[1]
    assert names[0].startswith("lmcacheengineconfig_")


def test_settings_fail_each_on_its_own(operated: Operated) -> None:
    wanted = {"min_retrieve_tokens": "700", "chunk_size": 16, "unknown_key": 1, "cache_policy": "RANDOM"}
    answer = operated.scheduler.json("POST", "/conf", 400, wanted)
    assert answer["updated"] == {"min_retrieve_tokens": 700}
    assert answer["errors"] == {
        "chunk_size": "Config is not mutable at runtime", "unknown_key": "Unknown config",
        "cache_policy": "Failed to set config value",
    }  # fmt: skip
    assert "LRU" in answer["messages"]["cache_policy"]
    assert operated.scheduler.settings()["min_retrieve_tokens"] == 700
    assert operated.worker.settings()["min_retrieve_tokens"] == 0


def test_threads_and_scripts(operated: Operated) -> None:
    """The loops of the engine are known to the worker; a script sees the process that it runs in."""
    names = [thread["name"] for thread in operated.worker.json("GET", "/periodic-threads")["threads"]]
    assert "PinMonitor-thread" in names
    pinning = operated.worker.json("GET", "/periodic-threads/PinMonitor-thread")
    assert (pinning["level"], pinning["interval"], pinning["is_running"]) == ("critical", 30.0, True)
    # One that had no turn for a few seconds is late, and then is not.
    wait_until(lambda: operated.worker.json("GET", "/periodic-threads-health")["healthy"], "all loops run")
    assert "api-server-thread" in operated.scheduler.ask("GET", "/threads").text
    script = b"result = app.state.lmcache_adapter.lmcache_engine_metadata.role"
    for api, role in ((operated.scheduler, "scheduler"), (operated.worker, "worker")):
        assert api.ask("POST", "/run_script", files={"script": script}).text == role


def test_log_levels(operated: Operated) -> None:
    try:
        operated.worker.ask("GET", "/loglevel?logger_name=lmcache.embedded&level=debug")
        assert operated.engine.run("import logging; result = logging.getLogger('lmcache.embedded').level") == 10
    finally:
        operated.engine.run("import logging; logging.getLogger('lmcache.embedded').setLevel(0)")
    assert "HF_HUB_OFFLINE" in operated.worker.ask("GET", "/env").text


def test_clear_by_location(operated: Operated) -> None:
    operated.engine.store(prompt_of(700, seed="clear"))
    assert len(operated.files()) == operated.num_in_l1() == 2
    removed = operated.worker.json("DELETE", "/cache/clear?locations=LocalCPUBackend")
    assert (removed["num_removed"], operated.num_in_l1(), len(operated.files())) == (2, 0, 2)
    removed = operated.worker.json("DELETE", "/cache/clear?locations=Foo&locations=LocalDiskBackend")
    assert (removed["num_removed"], len(operated.files())) == (2, 0)
    assert operated.worker.json("DELETE", "/cache/clear")["num_removed"] == 0
