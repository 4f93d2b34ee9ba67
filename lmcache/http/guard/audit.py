"""One line in the log `lmcache.audit` for each call that may change something: who, what, result."""

from __future__ import annotations

import logging

from starlette.types import Scope

from lmcache.http.guard.callers import describe_peer
from lmcache.http.guard.tokens import Token

logger = logging.getLogger("lmcache.audit")

_SHOWN_MAX = 300


def describe_call(scope: Scope) -> str:
    """Method, path and query on one line: what a client sends must not look like a line of the log."""
    query = scope.get("query_string", b"").decode("latin-1")
    target = f"{scope['path']}?{query}" if query else scope["path"]
    if len(target) > _SHOWN_MAX:
        target = f"{target[:_SHOWN_MAX]}..."
    return f"{_one_line(scope['method'])} {_one_line(target)}"


def record(scope: Scope, token: Token | None, status: int, seconds: float) -> None:
    """Whatever the level of the logger: among the calls recorded are those that set it."""
    holder = f" {token.name} ({token.role.word})" if token is not None else ""
    line = f"{describe_peer(scope)}{holder}: {describe_call(scope)} -> {status} in {seconds * 1000:.1f} ms"
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, line, (), None))


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
