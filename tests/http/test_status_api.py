"""GET /status of a fresh server: every documented key that has a source in this release."""

from __future__ import annotations

import httpx

from tests.server.running import RunningServer


def test_engine_fields(http: httpx.Client) -> None:
    status = http.get("/status").json()
    expected = {
        "is_healthy": True,
        "engine_type": "MPCacheServer",
        "chunk_size": 256,
        "hash_algorithm": "blake3",
        "active_sessions": 0,
        "active_prefetch_jobs": 0,
        "registered_gpu_ids": [],
        "cache_context_meta": {},
        "registered_non_cuda_instance_ids": [],
        "non_cuda_context_meta": {},
    }
    assert {key: status[key] for key in expected} == expected


def test_storage_manager_fields(http: httpx.Client, server: RunningServer) -> None:
    storage = http.get("/status").json()["storage_manager"]
    l1 = storage["l1_manager"]
    assert storage["is_healthy"] is l1["is_healthy"] is True
    assert (storage["l2_adapters"], storage["num_l2_adapters"]) == ([], 0)
    counts = ("total_object_count", "write_locked_count", "read_locked_count", "temporary_count", "memory_used_bytes")
    assert [l1[key] for key in counts] == [0] * len(counts)
    assert l1["memory_configured_bytes"] == 32 << 20
    assert (l1["write_ttl_seconds"], l1["read_ttl_seconds"]) == (600.0, 300.0)
    assert l1["memory_usage_ratio"] == 0
    assert storage["l1_eviction_controller"] == {
        "is_healthy": True,
        "thread_alive": True,
        "eviction_policy": "LRU",
        "trigger_watermark": 1.0,
        "eviction_ratio": 0.2,
    }
    assert l1["pool_folder"] == str(server.folder)
