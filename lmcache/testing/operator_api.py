"""The HTTP API for operators as it is documented, over plain state: for clients of it, and their tests.

Only what operators call is here. Bodies and codes follow the documentation; the state is public, to be
set up and looked at.
"""

from __future__ import annotations

import dataclasses
import ssl
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from lmcache.testing.http_fake import Call, HTTPFake, Reply

_BATCH_KEYS_MAX = 10_000

KeyFields = dict[str, Any]


@dataclass(slots=True)
class FakeAdapter:
    """`entries`: key fields and bytes. `error`: what every delete fails with."""

    type_name: str
    backend: str
    entries: list[tuple[KeyFields, int]] = field(default_factory=list)
    lists: bool = True
    error: str = ""
    operations: tuple[str, ...] = ("resize",)


def make_key(number: int, model_name: str = "m", cache_salt: str = "") -> KeyFields:
    return {
        "chunk_hash_hex": f"{number:064x}", "model_name": model_name, "kv_rank": 0x01000100, "object_group_id": 0,
        "cache_salt": cache_salt,
    }  # fmt: skip


@dataclass(slots=True)
class OperatorState:
    """`num_not_ready`: so many calls of what needs the engine find none yet. `role_error`: what any token is told."""

    num_not_ready: int = 0
    token: str = ""
    role_error: str = ""
    drops_connections: bool = False
    report: dict[str, Any] = field(default_factory=lambda: {"is_healthy": True})
    configs: dict[str, Any] = field(default_factory=dict)
    metrics: str = ""
    adapters: list[FakeAdapter] = field(default_factory=list)
    quotas: dict[str, float] = field(default_factory=dict)
    usage_gb: dict[str, float] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)


class FakeOperatorAPI:
    """A context manager: a real HTTP server at `url` over `state`."""

    def __init__(self, state: OperatorState | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.state = state or OperatorState()
        self._server = HTTPFake(self._answer, tls)
        self.url = self._server.url

    def __enter__(self) -> FakeOperatorAPI:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def calls(self, method: str, path: str) -> list[Call]:
        return [call for call in self.state.calls if (call.method, "/" + "/".join(call.parts)) == (method, path)]

    def _answer(self, call: Call) -> Reply:
        state = self.state
        state.calls.append(call)
        reply = self._refusal(call) or self._unready(call) or self._routed(call)
        return dataclasses.replace(reply, closes=state.drops_connections)

    def _refusal(self, call: Call) -> Reply | None:
        if not self.state.token or call.parts in ((), ("healthcheck",)):
            return None
        presented = call.headers.get("Authorization", "")
        if presented != f"Bearer {self.state.token}":
            return Reply(401, {"error": "this call needs a token"})
        return Reply(403, {"error": self.state.role_error}) if self.state.role_error else None

    def _unready(self, call: Call) -> Reply | None:
        if not self.state.num_not_ready or call.parts in ((), ("metrics",), ("metrics", "reset")):
            return None
        self.state.num_not_ready -= 1
        reason = "engine not initialized"
        match call.parts:
            case ("healthcheck",):
                return Reply(503, {"status": "unhealthy", "reason": reason})
            case ("clear-cache",):
                return Reply(503, {"status": "error", "reason": reason})
            case ("conf",):
                return Reply(503, {"error": "configs not initialized"})
            case ("l2", *_) | ("cache", *_):
                return Reply(503, {"detail": reason})
            case _:
                return Reply(503, {"error": reason})

    def _routed(self, call: Call) -> Reply:
        state = self.state
        match (call.method, *call.parts):
            case ("GET", "healthcheck"):
                return Reply(200, {"status": "healthy"})
            case ("GET", "status"):
                return Reply(200, state.report)
            case ("GET", "conf"):
                return Reply(200, state.configs)
            case ("GET", "metrics"):
                return Reply(200, state.metrics)
            case ("POST", "metrics", "reset"):
                return Reply(200, "ok")
            case ("POST", "clear-cache"):
                return Reply(200, {"status": "ok"})
            case ("POST", "cache", "clear"):
                return Reply(200, {"status": "ok", "cleared": {"tier": "l1"}})
            case (_, "l2", *_) | (_, "reconfigure", *_):
                return self._l2(call)
            case (_, "quota", *_):
                return self._quota(call)
            case _:
                return Reply(404, {"detail": "Not Found"})

    def _l2(self, call: Call) -> Reply:
        match (call.method, *call.parts):
            case ("GET", "l2", "adapters"):
                found = enumerate(self.state.adapters)
                entries = [{"index": at, "type_name": item.type_name, "primary": at == 0} for at, item in found]
                return Reply(200, {"adapters": entries})
            case ("GET", "l2", "keys"):
                return self._chosen(call, self._list)
            case ("DELETE", "l2"):
                num_keys = len(call.body["keys"])
                if num_keys > _BATCH_KEYS_MAX:
                    text = f"too many keys in a single request (limit={_BATCH_KEYS_MAX}, got={num_keys})"
                    return Reply(400, {"detail": text})
                return self._chosen(call, self._delete)
            case ("GET", "reconfigure", "backends"):
                names = sorted({adapter.backend for adapter in self.state.adapters})
                return Reply(200, {"enabled": bool(names), "num_backends": len(names), "backends": names})
            case ("GET", "reconfigure", backend, "status"):
                return Reply(200, self._reconfigurable(backend))
            case ("POST", "reconfigure", backend, operation):
                return self._reconfigure(backend, operation, call.body)
            case _:
                return Reply(404, {"detail": "Not Found"})

    def _chosen(self, call: Call, then: Any) -> Reply:
        name, adapters = call.query.get("adapter"), self.state.adapters
        if not adapters:
            return Reply(503, {"detail": "no L2 adapters configured"})
        found = [item for item in adapters if name in (None, item.type_name, item.backend)]
        if not found:
            return Reply(404, {"detail": f"no L2 adapter with type_name={name!r}"})
        reply: Reply = then(found[0], call)
        return reply

    def _list(self, adapter: FakeAdapter, call: Call) -> Reply:
        if not adapter.lists:
            text = f"L2 adapter {adapter.backend!r} does not support listing: it has no list"
            return Reply(501, {"detail": text})
        model = call.query.get("model_name")
        entries = [entry for entry in adapter.entries if model in (None, entry[0]["model_name"])]
        start, size = int(call.query.get("page_token") or 0), int(call.query.get("page_size", 500))
        page = [{"key": key, "size_bytes": num_bytes} for key, num_bytes in entries[start : start + size]]
        token = str(start + size) if start + size < len(entries) else None
        return Reply(200, {"adapter": adapter.type_name, "entries": page, "next_page_token": token})

    def _delete(self, adapter: FakeAdapter, call: Call) -> Reply:
        keys = call.body["keys"]
        answer = {"requested": len(keys), "adapter": adapter.type_name, "ok": not adapter.error}
        if adapter.error:
            return Reply(200, {**answer, "error": adapter.error})
        adapter.entries = [entry for entry in adapter.entries if entry[0] not in keys]
        return Reply(200, answer)

    def _reconfigurable(self, backend: str) -> dict[str, object]:
        found = [item for item in self.state.adapters if item.backend == backend]
        entries = [
            {"backend": backend, "adapter_index": at, "supported_operations": list(item.operations), "status": {}}
            for at, item in enumerate(found)
        ]
        return {"enabled": bool(entries), "backend": backend, "num_adapters": len(entries), "adapters": entries}

    def _reconfigure(self, backend: str, operation: str, body: Any) -> Reply:
        index = body["adapter_index"]
        if index >= sum(item.backend == backend for item in self.state.adapters):
            return Reply(404, {"error": f"{backend} adapter not found"})
        return Reply(200, {"status": "ok", "operation": operation, **body})

    def _quota(self, call: Call) -> Reply:
        state, salt = self.state, call.parts[1] if len(call.parts) > 1 else ""
        limit, used = state.quotas.get(salt), state.usage_gb.get(salt, 0.0)
        match (call.method, *call.parts):
            case ("GET", _):
                users = {
                    name: {"limit_gb": gb, "current_usage_gb": state.usage_gb.get(name, 0.0)}
                    for name, gb in state.quotas.items()
                }
                return Reply(200, {"users": users})
            case ("GET", _, _):
                answer = {"cache_salt": salt, "limit_gb": limit or 0.0, "current_usage_gb": used}
                return Reply(200, {**answer, "exists": limit is not None})
            case ("PUT", _, _):
                state.quotas[salt] = float(call.body["limit_gb"])
                return Reply(200, {"cache_salt": salt, "limit_gb": state.quotas[salt], "status": "ok"})
            case ("DELETE", _, _):
                status = "not_found" if state.quotas.pop(salt, None) is None else "removed"
                return Reply(200, {"cache_salt": salt, "status": status})
            case _:
                return Reply(405, {"detail": "Method Not Allowed"})
