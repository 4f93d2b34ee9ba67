"""GET /status of a server with tiers and an engine: every documented key of every part of it, and no unknown one."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmcache.storage.tier_life import TierState
from lmcache.testing.nursery import Nursery
from lmcache.testing.waiting import wait_until
from tests.http.engines import EngineSite, engine_site
from tests.http.storage_site import MEMORY, MOCK, WRAPPED_MOCK, storage_site

_NUM_ADAPTERS = 3
_LOOP = {"is_healthy", "thread_alive"}
_ADAPTER_COUNTS = {"num_l2_adapters", "num_active_adapters", "num_draining_adapters"}
_OF_TIER = {
    "is_healthy", "type", "configured_type", "state", "breaker", "breaker_opened_count", "is_stalled", "last_error",
}  # fmt: skip
_OF_MOCK = {"stored_object_count", "locked_key_count", "current_size_bytes", "max_capacity_bytes"}
# Those of transfers between servers, which this release does not have, are left out.
_TOP = {
    "is_healthy", "engine_type", "chunk_size", "hash_algorithm", "active_sessions", "storage_manager",
    "active_prefetch_jobs", "registered_gpu_ids", "cache_context_meta", "registered_non_cuda_instance_ids",
    "non_cuda_context_meta",
}  # fmt: skip
# Ours besides.
_TOP_OWN = {"abandoned_scripts", "engine_identities"}
_STORAGE = {
    "is_healthy", "l1_manager", "store_controller", "prefetch_controller", "l1_eviction_controller",
    "l2_eviction_controller", "l2_scrubber", "l2_adapters", "num_l2_adapters",
}  # fmt: skip
_L1 = {
    "is_healthy", "total_object_count", "write_locked_count", "read_locked_count", "temporary_count",
    "memory_used_bytes", "memory_total_bytes", "memory_usage_ratio", "write_ttl_seconds", "read_ttl_seconds",
}  # fmt: skip
_L1_OWN = {
    "unhealthy_reason", "quarantined_count", "quarantined_bytes", "memory_configured_bytes", "is_populating",
    "open_store_batches", "pool_folder", "recovered_object_count", "recovered_dropped_count",
}  # fmt: skip
_PARTS = {
    "l1_manager": _L1 | _L1_OWN,
    "store_controller": _LOOP | _ADAPTER_COUNTS | {"policy", "pending_keys_count", "in_flight_task_count"},
    "prefetch_controller": _LOOP | _ADAPTER_COUNTS | {
        "policy", "max_in_flight", "submission_queue_size", "pending_queue_size", "in_flight_request_count",
        "lookup_phase_count", "load_phase_count", "completed_results_count",
    },
    "l1_eviction_controller": _LOOP | {"eviction_policy", "trigger_watermark", "eviction_ratio"},
    "l2_eviction_controller": _LOOP | {"adapters"},
    "l2_scrubber": _LOOP | {"objects_per_second", "verified_count", "removed_count"},
}  # fmt: skip
_EVICTING_ADAPTER = {
    "l2_name", "eviction_policy", "trigger_watermark", "eviction_ratio", "current_usage", "total_bytes_used",
    "total_capacity_bytes", "num_cache_salt_buckets",
}  # fmt: skip
_LAYOUT = {"num_layers", "num_blocks", "cache_size_per_token", "kernel_groups"}
_KERNEL_GROUP = {
    "kernel_group_idx", "engine_group_idx", "object_group_idx", "num_layers", "layer_indices", "tokens_per_block",
    "slots_per_block", "dtype", "engine_kv_concrete_shape", "is_mla", "engine_kv_format", "engine_kv_shape",
    "attention_backend",
}  # fmt: skip


def evicting_mock() -> str:
    eviction = {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.7, "eviction_ratio": 0.3}
    return json.dumps({"type": "mock", "max_size_gb": 1, "eviction": eviction})


@pytest.fixture(scope="module")
def site(
    nursery: Nursery, make_pool_folder: Callable[[], pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineSite]:
    files = json.dumps({"type": "fs", "base_path": str(tmp_path_factory.mktemp("objects"))})
    adapters = [flag for text in (evicting_mock(), files, WRAPPED_MOCK) for flag in ("--l2-adapter", text)]
    flags = ("--default-quota-gb", "1", *adapters)
    with engine_site(make_pool_folder(), nursery, *flags) as found:
        found.start_engine().store(["one", "two"])
        wait_until(lambda: all(each["stored_object_count"] == 2 for each in storage(found)["l2_adapters"]))
        yield found


def status(site: EngineSite) -> dict[str, Any]:
    found: dict[str, Any] = site.http.get("/status").json()
    return found


def storage(site: EngineSite) -> dict[str, Any]:
    found: dict[str, Any] = status(site)["storage_manager"]
    return found


def test_the_engine_and_its_modules(site: EngineSite) -> None:
    found = status(site)
    assert set(found) >= _TOP | {"worker_liveness"}
    assert set(found) - _TOP - {"worker_liveness"} <= _TOP_OWN
    assert found["is_healthy"] is found["storage_manager"]["is_healthy"] is True
    assert found["worker_liveness"] == {
        "enabled": True, "reap_timeout_seconds": 120.0, "registration_grace_seconds": 3600.0, "tracked_instances": 2,
    }  # fmt: skip


def test_the_worker(site: EngineSite) -> None:
    found = status(site)
    assert found["registered_gpu_ids"] == [0]
    assert set(found["cache_context_meta"]) == {"0"}
    context = found["cache_context_meta"]["0"]
    assert set(context) == {"model_name", "world_size", "rank", "kv_cache_layout"}
    assert set(context["kv_cache_layout"]) == _LAYOUT
    [group] = context["kv_cache_layout"]["kernel_groups"]
    assert set(group) == _KERNEL_GROUP


def test_the_parts_of_the_storage_manager(site: EngineSite) -> None:
    found = storage(site)
    assert set(found) == _STORAGE
    assert {name: set(found[name]) for name in _PARTS} == _PARTS
    assert all(found[name]["is_healthy"] is True for name in _PARTS)
    assert all(found[name]["thread_alive"] is True for name in _PARTS if name != "l1_manager")
    for name in ("store_controller", "prefetch_controller"):
        counts = {count: found[name][count] for count in _ADAPTER_COUNTS}
        expected = {
            "num_l2_adapters": _NUM_ADAPTERS, "num_active_adapters": _NUM_ADAPTERS, "num_draining_adapters": 0,
        }  # fmt: skip
        assert counts == expected


def test_the_adapters(site: EngineSite) -> None:
    found = storage(site)
    mock, files, wrapped = found["l2_adapters"]
    assert found["num_l2_adapters"] == _NUM_ADAPTERS
    assert set(mock) == _OF_TIER | _OF_MOCK
    assert set(wrapped) == set(mock) | {"serde_wrapped", "serdes"}
    assert wrapped["serde_wrapped"] is True
    assert set(files) >= _OF_TIER | {"base_path", "use_odirect"}
    assert [each["type"] for each in (mock, files, wrapped)] == ["MockL2Adapter", "FSL2Adapter", "MockL2Adapter"]


def test_how_the_adapters_evict(site: EngineSite) -> None:
    found = storage(site)
    entries = found["l2_eviction_controller"]["adapters"]
    assert [set(entry) for entry in entries] == [_EVICTING_ADAPTER] * _NUM_ADAPTERS
    used = found["l2_adapters"][0]["current_size_bytes"]
    assert entries[0] == {
        "l2_name": "mock", "eviction_policy": "IsolatedLRU", "trigger_watermark": 0.7, "eviction_ratio": 0.3,
        "current_usage": used / 2**30, "total_bytes_used": used, "total_capacity_bytes": 2**30,
        "num_cache_salt_buckets": 1,
    }  # fmt: skip


def test_nobody_is_watched_where_nobody_is_registered(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder) as alone:
        assert set(alone.ask("GET", "/status").json()) >= _TOP
        assert "worker_liveness" not in alone.ask("GET", "/status").json()


def test_an_adapter_on_its_way_out(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MOCK, MEMORY]) as site:
        wait_until(lambda: all(tier.state is TierState.ACTIVE for tier in site.engine.storage.tiers()))
        assert site.tier("mock").drain()
        found = site.ask("GET", "/status").json()["storage_manager"]
        for name in ("store_controller", "prefetch_controller"):
            assert {count: found[name][count] for count in _ADAPTER_COUNTS} == {
                "num_l2_adapters": 2, "num_active_adapters": 1, "num_draining_adapters": 1,
            }  # fmt: skip
        assert [each["state"] for each in found["l2_adapters"]] == ["draining", "active"]
