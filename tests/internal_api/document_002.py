"""What document 002 says of the internal API, transcribed as data: its calls with its own numbers. Where it prints no
answer, or only the beginning of one, the answer is that of the fakes behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Method and path of every section, in the document's order.
DOCUMENTED = (
    ("GET", "/lmc_version"),
    ("GET", "/commit_id"),
    ("GET", "/version"),
    ("GET", "/inference_info"),
    ("GET", "/inference_version"),
    ("GET", "/conf"),
    ("POST", "/conf"),
    ("GET", "/meta"),
    ("DELETE", "/cache/clear"),
    ("POST", "/cache/store"),
    ("POST", "/cache/retrieve"),
    ("GET", "/cache/kvcache/check"),
    ("POST", "/cache/kvcache/record_slot"),
    ("GET", "/cache/kvcache/info"),
    ("POST", "/cache/load-fs-chunks"),
    ("PUT", "/freeze/enable"),
    ("PUT", "/freeze/disable"),
    ("GET", "/freeze/status"),
    ("PUT", "/hot_cache/enable"),
    ("PUT", "/hot_cache/disable"),
    ("GET", "/hot_cache/status"),
    ("GET", "/lookup/info"),
    ("POST", "/lookup/close"),
    ("POST", "/lookup/create"),
    ("POST", "/lookup/recreate"),
    ("POST", "/chunk_statistics/start"),
    ("POST", "/chunk_statistics/stop"),
    ("POST", "/chunk_statistics/reset"),
    ("GET", "/chunk_statistics/status"),
    ("GET", "/bypass/list"),
    ("PUT", "/bypass/add"),
    ("PUT", "/bypass/remove"),
)
# Not in the document: changing backends at run time, and what every process of ours serves.
BESIDES = (
    ("GET", "/backends"),
    ("POST", "/backends"),
    ("DELETE", "/backends/{name}"),
    ("POST", "/backends/{name}/recreate"),
    ("GET", "/env"),
    ("GET", "/loglevel"),
    ("GET", "/metrics"),
    ("POST", "/metrics/reset"),
    ("GET", "/threads"),
    ("GET", "/periodic-threads"),
    ("GET", "/periodic-threads/{thread_name}"),
    ("GET", "/periodic-threads-health"),
    ("POST", "/run_script"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A call and its answer. `answer` None: only code and type are the same everywhere."""

    method: str
    target: str
    code: int = 200
    answer: Any = None
    body: Any = None
    content_type: str = "application/json"

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.code}"


_TEXT = "text/plain; charset=utf-8"
_KEYS = "min_retrieve_tokens,save_decode_cache"
_UNKNOWN = {"error": "Unknown backend",
            "message": "Backend 'FooBackend' not found. Available: ['LocalCPUBackend', 'RemoteBackend']"}  # fmt: skip

# Of a worker, in the document's order: they build on each other.
ON_WORKER = (
    Sample("GET", "/lmc_version"),
    Sample("GET", "/commit_id"),
    Sample("GET", "/version"),
    Sample("GET", "/inference_info"),
    Sample("GET", "/inference_version", answer={"vllm_version": "0.8.0"}),
    Sample("GET", "/conf"),
    Sample("GET", f"/conf?names={_KEYS}", answer={"min_retrieve_tokens": 0, "save_decode_cache": False}),
    Sample("POST", "/conf", answer={"updated": {"min_retrieve_tokens": 512, "save_decode_cache": True}},
           body={"min_retrieve_tokens": 512, "save_decode_cache": True}),
    Sample("POST", "/conf", 400, {"updated": {"min_retrieve_tokens": 512}, "errors": {"unknown_key": "Unknown config"}},
           body={"min_retrieve_tokens": 512, "unknown_key": 1}),
    Sample("POST", "/conf", 400,
           {"updated": {}, "errors": {"chunk_size": "Config is not mutable at runtime"}}, body={"chunk_size": 16}),
    Sample("GET", f"/conf?names={_KEYS}", answer={"min_retrieve_tokens": 512, "save_decode_cache": True}),
    Sample("GET", "/meta"),
    Sample("GET", "/meta?names=worker_id,model_name", answer={"worker_id": 0, "model_name": "m"}),
    Sample("DELETE", "/cache/clear", answer={"status": "success", "num_removed": 10}),
    Sample("DELETE", "/cache/clear?locations=LocalCPUBackend&locations=LocalDiskBackend",
           answer={"status": "success", "num_removed": 0}),
    Sample("POST", "/cache/store?tokens_mock=0,100", answer={"status": "success", "num_tokens": 100}),
    Sample("POST", "/cache/store", 400, {"error": "Missing parameters",
                                         "message": "Must specify either tokens_input or tokens_mock"}),
    Sample("POST", "/cache/retrieve?tokens_mock=0,100",
           answer={"status": "success", "num_tokens": 100, "num_retrieved": 80}),
    Sample("POST", "/cache/retrieve", 400, {"error": "Missing parameters",
                                            "message": "Must specify either tokens_input or tokens_mock"}),
    Sample("GET", "/cache/kvcache/check?slot_mapping=0,1,2,3&chunk_size=2", answer={
        "status": "success", "slot_mapping_ranges": [[0, 3]], "chunk_size": 2, "num_chunks": 2,
        "chunk_checksums": ["73450f0d9772ce7869b46d3630baeb92", "d4f0a90f93182c477299ef959c145657"],
        "layerwise": False}),
    Sample("GET", "/cache/kvcache/check?slot_mapping=0,1,2,3&chunk_size=2&layerwise=true", answer={
        "status": "success", "slot_mapping_ranges": [[0, 3]], "chunk_size": 2, "num_chunks": 2,
        "chunk_checksums": {"l.1": ["17e893f09ee115feeb3161220f6f380b", "2d20bce9dc31028b388465e6d5875574"],
                            "l.0": ["efff9682c224bf2dce13f2e5b2d74cd1", "efff9682c224bf2dce13f2e5b2d74cd1"]},
        "layerwise": True}),
    # Beside the document's: a last chunk that is short.
    Sample("GET", "/cache/kvcache/check?slot_mapping=[0,2]&chunk_size=2&layerwise=true", answer={
        "status": "success", "slot_mapping_ranges": [[0, 2]], "chunk_size": 2, "num_chunks": 2,
        "chunk_checksums": {"l.1": ["17e893f09ee115feeb3161220f6f380b", "3f6e858497f9501f41772cab6596e710"],
                            "l.0": ["efff9682c224bf2dce13f2e5b2d74cd1", "cf47ecb9bc3fb05f137c4157807b304d"]},
        "layerwise": True}),
    Sample("POST", "/cache/kvcache/record_slot?enabled=true",
           answer={"status": "success", "kvcache_check_log_enabled": True}),
    Sample("POST", "/cache/kvcache/record_slot", answer={"status": "success", "kvcache_check_log_enabled": True}),
    Sample("POST", "/cache/kvcache/record_slot?enabled=false",
           answer={"status": "success", "kvcache_check_log_enabled": False}),
    Sample("GET", "/cache/kvcache/info", answer={"status": "success", "num_layers": 2, "layers": {
        name: {"shape": [2, 2, 2, 1, 2], "dtype": "torch.float32", "device": "cpu"} for name in ("l.1", "l.0")}}),
    Sample("POST", "/cache/load-fs-chunks", body={"config_path": "/path/to/lmcache.yaml", "max_chunks": 100}, answer={
        "status": "success", "loaded_chunks": 95, "total_files": 100, "failed_keys": ["key1", "key2"],
        "config_path": "/path/to/lmcache.yaml"}),
    Sample("PUT", "/freeze/enable", answer={"status": "success", "freeze": True,
                                            "message": "Freeze mode enabled successfully"}),
    Sample("GET", "/freeze/status", answer={"status": "success", "freeze": True, "message": "Freeze mode is enabled"}),
    Sample("PUT", "/freeze/disable", answer={"status": "success", "freeze": False,
                                             "message": "Freeze mode disabled successfully"}),
    Sample("GET", "/freeze/status", answer={"status": "success", "freeze": False,
                                            "message": "Freeze mode is disabled"}),
    Sample("PUT", "/hot_cache/enable", answer={"status": "success", "hot_cache": True,
                                               "message": "Hot cache enabled successfully"}),
    Sample("GET", "/hot_cache/status", answer={"status": "success", "hot_cache": True,
                                               "message": "Hot cache is enabled"}),
    Sample("PUT", "/hot_cache/disable", answer={"status": "success", "hot_cache": False,
                                                "message": "Hot cache disabled successfully"}),
    Sample("GET", "/hot_cache/status", answer={"status": "success", "hot_cache": False,
                                               "message": "Hot cache is disabled"}),
    Sample("GET", "/lookup/info", answer={"client": "None", "server": "LMCacheLookupServer", "role": "worker"}),
    Sample("POST", "/lookup/recreate",
           answer={"old": "LMCacheLookupServer", "new": "LMCacheAsyncLookupServer", "role": "worker"}),
    Sample("POST", "/chunk_statistics/start", 503,
           {"error": "API unavailable", "message": "Lookup client not configured."}),
    Sample("PUT", "/bypass/add?backend_name=RemoteBackend", answer={
        "status": "success", "backend_name": "RemoteBackend", "bypassed": True, "was_already_bypassed": False,
        "bypassed_backends": ["RemoteBackend"]}),
    Sample("GET", "/bypass/list", answer={"status": "success", "bypassed_backends": ["RemoteBackend"],
                                          "all_backends": ["LocalCPUBackend", "RemoteBackend"]}),
    Sample("PUT", "/bypass/add?backend_name=FooBackend", 400, _UNKNOWN),
    Sample("PUT", "/bypass/remove?backend_name=RemoteBackend", answer={
        "status": "success", "backend_name": "RemoteBackend", "bypassed": False, "was_bypassed": True,
        "bypassed_backends": []}),
    Sample("PUT", "/bypass/remove?backend_name=FooBackend", 400, _UNKNOWN),
)  # fmt: skip

# Of a worker that does not find that file.
WITHOUT_FILE = Sample(
    "POST", "/cache/load-fs-chunks", 400, body={"config_path": "/path/to/lmcache.yaml", "max_chunks": 100}, answer={
        "error": "Failed to load chunks from FSConnector", "message": "Configuration file not found",
        "config_path": "/path/to/lmcache.yaml"},
)  # fmt: skip

# Of a worker with the document's pages: what it prints of them.
INFO = Sample("GET", "/cache/kvcache/info")
NUM_LAYERS, LAYER_SHAPE, LAYER_DTYPE, LAYER_DEVICE = 32, (2, 128, 16, 64, 128), "torch.bfloat16", "cuda:0"
LAYER_0 = {"shape": [2, 128, 16, 64, 128], "dtype": "torch.bfloat16", "device": "cuda:0"}
LAYERWISE = Sample("GET", "/cache/kvcache/check?slot_mapping=0,1,2,3&chunk_size=2&layerwise=true")
LAYERWISE_NAMES = ["layer_0", "layer_1"]

# Of a scheduler, each of one that nothing was changed of.
ON_SCHEDULER = (
    Sample("GET", "/lookup/info", answer={
        "client": "HitLimitLookupClient(LMCacheBypassLookupClient)", "server": "None", "role": "scheduler"}),
    Sample("POST", "/lookup/create?dryrun=true",
           answer={"new": "LMCacheLookupClient", "dryrun": True, "role": "scheduler"}),
    Sample("POST", "/lookup/close",
           answer={"old": "HitLimitLookupClient(LMCacheBypassLookupClient)", "role": "scheduler"}),
    Sample("POST", "/lookup/create", answer={"new": "LMCacheLookupClient", "role": "scheduler"}),
    Sample("POST", "/lookup/recreate",
           answer={"old": "HitLimitLookupClient(LMCacheBypassLookupClient)", "new": "LMCacheLookupClient",
                   "role": "scheduler"}),
    Sample("POST", "/chunk_statistics/start", 400,
           {"error": "Not available", "message": "Client does not support statistics."}),
)  # fmt: skip

# Of a scheduler whose lookup client counts chunks.
ON_COUNTING_SCHEDULER = (
    Sample("POST", "/chunk_statistics/start", answer={"status": "success", "message": "Started"}),
    Sample("GET", "/chunk_statistics/status", answer={
        "is_collecting": True, "total_chunks": 1000, "unique_chunks": 500, "timestamp": 1706745600.0,
        "auto_exit_enabled": True, "auto_exit_timeout_hours": 24.0, "auto_exit_target_unique_chunks": 1000}),
    Sample("POST", "/chunk_statistics/stop", answer={"status": "success", "message": "Stopped"}),
    Sample("POST", "/chunk_statistics/reset", answer={"status": "success", "message": "Reset"}),
)  # fmt: skip

# What every process of ours serves; of either half.
COMMON = (
    Sample("GET", "/env", content_type=_TEXT),
    Sample("GET", "/loglevel", content_type=_TEXT),
    Sample("GET", "/metrics", content_type=_TEXT),
    Sample("POST", "/metrics/reset", answer="ok", content_type=_TEXT),
    Sample("GET", "/threads", content_type=_TEXT),
    Sample("GET", "/periodic-threads"),
    Sample("GET", "/periodic-threads/none", 404, {"error": "Thread not found: none"}),
    Sample("GET", "/periodic-threads-health", answer={"healthy": True, "unhealthy_count": 0, "unhealthy_threads": []}),
    Sample("POST", "/run_script", 400, "No script file provided", content_type=_TEXT),
    Sample("GET", "/controller/workers", 404, {"detail": "Not Found"}),
)
