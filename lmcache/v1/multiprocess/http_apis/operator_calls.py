"""What endpoints over the storage share: to find engine and adapter, to wait for backends, to answer what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import HTTPException, Request, Response

from lmcache.engine.cache_server import MPCacheServer
from lmcache.errors import AdapterNotFoundError
from lmcache.http.errors import sendable
from lmcache.storage.manager import StorageManager
from lmcache.storage.tier import Tier

T = TypeVar("T")
Answers = dict[int | str, dict[str, Any]]

NO_ENGINE = "engine not initialized"
# They wait for backends: they must not use up the threads that the other endpoints work in. More than one adapter
# lets in, so that those of another are answered.
_CALLS_AT_ONCE_MAX = 64
_limiter = CapacityLimiter(_CALLS_AT_ONCE_MAX)


async def run_blocking(work: Callable[[], T]) -> T:
    """Off the event loop: what may wait for a backend."""
    return await anyio.to_thread.run_sync(work, limiter=_limiter)


async def run_in_thread(work: Callable[[], T]) -> T:
    """Off the event loop: what takes a moment, or the engine's mutex, and asks no backend."""
    return await anyio.to_thread.run_sync(work)


def find_engine(request: Request) -> MPCacheServer | None:
    return cast("MPCacheServer | None", request.app.state.engine)


def require_engine(request: Request) -> MPCacheServer:
    """Or 503 `{"detail": ...}`."""
    engine = find_engine(request)
    if engine is None:
        raise HTTPException(503, NO_ENGINE)
    return engine


def require_adapter(storage: StorageManager, selector: str | None) -> Tier:
    """The adapter that a client selected by class name or configured type, the first by default; or 503, 404."""
    if not storage.has_adapters:
        raise HTTPException(503, "no L2 adapters configured")
    try:
        return storage.find_l2_adapter(selector)
    except AdapterNotFoundError as error:
        raise refusal(404, error) from error


def refusal(status: int, error: Exception) -> HTTPException:
    """`{"detail": ...}` with the text of an error, which may hold anything."""
    return HTTPException(status, sendable(str(error)))


def answer_json(content: object, status: int = 200) -> Response:
    """In ASCII, since texts of backends may hold what UTF-8 cannot say (names of files)."""
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


def described(**texts: str) -> Answers:
    """Error answers for the API's description: `described(_404="...")`."""
    return {int(code.removeprefix("_")): {"description": text} for code, text in texts.items()}
