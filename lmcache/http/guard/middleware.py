"""The guard in front of an application, as ASGI middleware: asks the policy, bounds the body, writes the audit."""

from __future__ import annotations

import contextlib
import time

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmcache.http.guard import audit
from lmcache.http.guard.bodies import BodyBound, BodyTooLargeError, announced_bytes
from lmcache.http.guard.callers import is_local
from lmcache.http.guard.demands import demand_of
from lmcache.http.guard.described import describe_guard
from lmcache.http.guard.encoding import is_text
from lmcache.http.guard.policy import Call, GuardConfig, Refusal, Verdict, judge

_POLICY_VIOLATION = 1008
_NO_TEXT = Refusal(400, "path and query must be UTF-8, percent-encoded")
# What proxies write into their logs for a client that left before it was answered.
_CLIENT_GONE = 499


def install_guard(app: FastAPI, config: GuardConfig) -> None:
    """Before the application serves its first call."""
    app.add_middleware(_Guard, config=config)
    describe_guard(app, config)


class _Guard:
    def __init__(self, app: ASGIApp, config: GuardConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "websocket":  # nothing here is served that way, so nothing would guard it
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            case _:
                await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun_s = time.perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        demand = demand_of(scope["method"], scope["path"], scope["query_string"].decode("latin-1"))
        verdict = judge(self._config, Call(scope["path"], demand, is_local(scope), headers))
        seen = _StatusSeen(send)
        try:
            await self._pass_or_refuse(scope, receive, seen, headers, verdict)
        except ClientDisconnect:  # in the middle of its body: nobody is there to be answered
            seen.status = _CLIENT_GONE
        finally:
            if demand.is_change:
                audit.record(scope, verdict.token, seen.status, time.perf_counter() - begun_s)

    async def _pass_or_refuse(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], verdict: Verdict
    ) -> None:
        if verdict.refusal is not None:
            await _refuse(verdict.refusal, scope, receive, send)
            return
        if not is_text(scope):
            await _refuse(_NO_TEXT, scope, receive, send)
            return
        size, size_max = announced_bytes(headers), self._config.body_bytes_max
        if size > size_max:
            await _refuse(_too_large(size_max), scope, receive, send)
            return
        bound = BodyBound(receive, send, size_max)
        with contextlib.suppress(BodyTooLargeError):
            await self._app(scope, bound.receive, bound.send)
        if bound.is_exceeded and not bound.has_answered:
            await _refuse(_too_large(size_max), scope, receive, send)


class _StatusSeen:
    """`status`: of the answer that went through; 500 where none did."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _too_large(size_max: int) -> Refusal:
    return Refusal(413, f"the body is too large: at most {size_max} bytes are accepted")


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Before the body is read: the server drops what still arrives of it, so that the client can read the answer."""
    headers = {} if refusal.challenge is None else {"www-authenticate": refusal.challenge}
    await JSONResponse({"error": refusal.error}, refusal.status, headers)(scope, receive, send)
