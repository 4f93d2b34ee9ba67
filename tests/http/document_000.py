"""What document 000 says of the HTTP API, and the later names of the same things, transcribed as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Method and path of every section, in the document's order.
DOCUMENTED = (
    ("GET", "/"),
    ("GET", "/healthcheck"),
    ("GET", "/status"),
    ("GET", "/conf"),
    ("GET", "/version"),
    ("GET", "/lmc_version"),
    ("GET", "/commit_id"),
    ("POST", "/clear-cache"),
    ("GET", "/kvcache/check"),
    ("GET", "/l2/adapters"),
    ("DELETE", "/l2"),
    ("GET", "/l2/keys"),
    ("PUT", "/quota/{cache_salt}"),
    ("GET", "/quota/{cache_salt}"),
    ("DELETE", "/quota/{cache_salt}"),
    ("GET", "/quota"),
    ("GET", "/reconfigure/backends"),
    ("GET", "/reconfigure/{backend}/status"),
    ("POST", "/reconfigure/{backend}/{operation}"),
    ("GET", "/metrics"),
    ("POST", "/metrics/reset"),
    ("GET", "/loglevel"),
    ("GET", "/threads"),
    ("GET", "/periodic-threads"),
    ("GET", "/periodic-threads/{thread_name}"),
    ("GET", "/periodic-threads-health"),
    ("GET", "/env"),
    ("POST", "/run_script"),
)
LATER_NAMES = (
    ("GET", "/config"),
    ("GET", "/config/adapters"),
    ("POST", "/cache/clear"),
    ("POST", "/cache/checksums"),
    ("GET", "/cache/objects"),
    ("DELETE", "/cache/objects"),
    ("POST", "/cache/prefetches"),
    ("GET", "/cache/prefetches/{request_id}"),
    ("GET", "/reconfigure/{backend}/l2/status"),
    ("POST", "/reconfigure/{backend}/l2/{operation}"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A call and what is answered to it by a fresh server. `answer`: the body, read as JSON where that is its type;
    None where only the code and the type are the same everywhere."""

    method: str
    target: str
    code: int
    answer: Any = None
    body: Any = None
    content_type: str = "application/json"

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.code}"


_TEXT = "text/plain; charset=utf-8"
_NO_ENGINE = "engine not initialized"
_KEY = {"chunk_hash_hex": "aa", "model_name": "m", "kv_rank": 0, "object_group_id": 0, "cache_salt": "user-a"}

# Of a server without L2 adapters and engines.
SAMPLES = (
    Sample("GET", "/", 200, {"status": "ok", "service": "LMCache HTTP API"}),
    Sample("GET", "/healthcheck", 200, {"status": "healthy"}),
    Sample("GET", "/status", 200),
    Sample("GET", "/conf", 200),
    Sample("GET", "/version", 200),
    Sample("GET", "/lmc_version", 200),
    Sample("GET", "/commit_id", 200),
    Sample("POST", "/clear-cache", 200, {"status": "ok"}),
    Sample("POST", "/clear-cache", 200, {"status": "ok"}, body="is ignored"),
    Sample("GET", "/l2/adapters", 200, {"adapters": []}),
    Sample("DELETE", "/l2", 503, {"detail": "no L2 adapters configured"}, body={"keys": [_KEY]}),
    Sample("GET", "/l2/keys?model_name=meta-llama/Llama-3-8B&page_size=500&page_token=", 503,
           {"detail": "no L2 adapters configured"}),
    Sample("PUT", "/quota/alice", 200, {"cache_salt": "alice", "limit_gb": 10.0, "status": "ok"},
           body={"limit_gb": 10.0}),
    Sample("GET", "/quota/alice", 200,
           {"cache_salt": "alice", "limit_gb": 10.0, "current_usage_gb": 0.0, "exists": True}),
    Sample("GET", "/quota", 200, {"users": {"alice": {"limit_gb": 10.0, "current_usage_gb": 0.0}}}),
    Sample("DELETE", "/quota/alice", 200, {"cache_salt": "alice", "status": "removed"}),
    Sample("DELETE", "/quota/alice", 200, {"cache_salt": "alice", "status": "not_found"}),
    Sample("GET", "/quota/_default", 200,
           {"cache_salt": "_default", "limit_gb": 0.0, "current_usage_gb": 0.0, "exists": False}),
    Sample("GET", "/reconfigure/backends", 200, {"enabled": False, "num_backends": 0, "backends": []}),
    Sample("GET", "/reconfigure/dax/status", 200,
           {"enabled": False, "backend": "dax", "num_adapters": 0, "adapters": []}),
    Sample("GET", "/metrics", 200, content_type=_TEXT),
    Sample("POST", "/metrics/reset", 200, "ok", content_type=_TEXT),
    Sample("GET", "/loglevel", 200, content_type=_TEXT),
    Sample("GET", "/loglevel?logger_name=lmcache.samples&level=DEBUG", 200,
           "Set lmcache.samples level to DEBUG (including all handlers)", content_type=_TEXT),
    Sample("GET", "/loglevel?logger_name=lmcache.samples", 200, "lmcache.samples: DEBUG", content_type=_TEXT),
    Sample("GET", "/loglevel?logger_name=lmcache.samples&level=loud", 400, "Invalid log level: loud",
           content_type=_TEXT),
    Sample("GET", "/loglevel?level=DEBUG", 200, "null"),
    Sample("GET", "/threads?name=periodic", 200, content_type=_TEXT),
    Sample("GET", "/periodic-threads?level=critical", 200),
    Sample("GET", "/periodic-threads/storage-flush", 404, {"error": "Thread not found: storage-flush"}),
    Sample("GET", "/periodic-threads-health", 200,
           {"healthy": True, "unhealthy_count": 0, "unhealthy_threads": []}),
    Sample("GET", "/env", 200, content_type=_TEXT),
    Sample("POST", "/run_script", 400, "No script file provided", content_type=_TEXT),
)  # fmt: skip

# Before the engine is there. Those without an answer here say 503 in a form of their own.
WITHOUT_ENGINE = (
    Sample("GET", "/healthcheck", 503, {"status": "unhealthy", "reason": _NO_ENGINE}),
    Sample("GET", "/status", 503, {"error": _NO_ENGINE}),
    Sample("POST", "/clear-cache", 503, {"status": "error", "reason": _NO_ENGINE}),
    Sample("GET", "/kvcache/check?block_ids=0,1,2,3&chunk_size=2", 503, {"error": _NO_ENGINE}),
    Sample("GET", "/kvcache/check", 503, {"error": _NO_ENGINE}),
    Sample("GET", "/l2/adapters", 503, {"detail": _NO_ENGINE}),
    Sample("DELETE", "/l2", 503, {"detail": _NO_ENGINE}, body={"keys": []}),
    Sample("DELETE", "/l2", 503, {"detail": _NO_ENGINE}, body={"keys": [_KEY]}),
    Sample("GET", "/l2/keys", 503, {"detail": _NO_ENGINE}),
    Sample("PUT", "/quota/alice", 503, {"error": _NO_ENGINE}, body={"limit_gb": 10.0}),
    Sample("GET", "/quota/alice", 503, {"error": _NO_ENGINE}),
    Sample("DELETE", "/quota/alice", 503, {"error": _NO_ENGINE}),
    Sample("GET", "/quota", 503, {"error": _NO_ENGINE}),
    Sample("GET", "/reconfigure/backends", 503, {"error": _NO_ENGINE}),
    Sample("GET", "/reconfigure/dax/status", 503, {"error": _NO_ENGINE}),
    Sample("POST", "/reconfigure/mock/resize", 503, {"error": _NO_ENGINE}, body={"size": "1GiB"}),
    Sample("GET", "/config/adapters", 503),
    Sample("POST", "/cache/clear", 503),
    Sample("POST", "/cache/checksums", 503, body={"block_ids": [0], "chunk_size": 1}),
    Sample("GET", "/cache/objects", 503),
    Sample("DELETE", "/cache/objects", 503, body={"keys": []}),
    Sample("POST", "/cache/prefetches", 503, body={"model_name": "m", "world_size": 1, "token_ids": [1, 2]}),
    Sample("GET", "/cache/prefetches/1", 503),
    Sample("GET", "/reconfigure/mock/l2/status", 503),
    Sample("POST", "/reconfigure/mock/l2/resize", 503, body={"size": "1GiB"}),
)
# What answers as ever, engine or not; and errors that are found before the engine is asked for.
REGARDLESS_OF_ENGINE = (
    Sample("GET", "/", 200, {"status": "ok", "service": "LMCache HTTP API"}),
    Sample("GET", "/conf", 200),
    Sample("GET", "/version", 200),
    Sample("GET", "/metrics", 200, content_type=_TEXT),
    Sample("GET", "/loglevel", 200, content_type=_TEXT),
    Sample("GET", "/threads", 200, content_type=_TEXT),
    Sample("GET", "/periodic-threads", 200),
    Sample("GET", "/periodic-threads-health", 200),
    Sample("GET", "/env", 200, content_type=_TEXT),
    Sample("DELETE", "/l2", 400,
           {"detail": "keys[0]: non-hexadecimal number found in fromhex() arg at position 0"},
           body={"keys": [{"chunk_hash_hex": "zz", "model_name": "m", "kv_rank": 0}]}),
    Sample("DELETE", "/l2", 422,
           {"detail": [{"type": "missing", "loc": ["body", "keys"], "msg": "Field required", "input": {}}]}, body={}),
    Sample("GET", "/l2/keys?page_size=0", 422),
    Sample("GET", "/threads?thread_id=abc", 422),
    Sample("GET", "/no-such-path", 404, {"detail": "Not Found"}),
    Sample("POST", "/healthcheck", 405, {"detail": "Method Not Allowed"}),
)  # fmt: skip
