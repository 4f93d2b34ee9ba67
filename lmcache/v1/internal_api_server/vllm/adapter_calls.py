"""What these endpoints share: to find the manager and its engine, to wait for them beside the event loop, to shape
answers and errors as documented."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import anyio.to_thread
from fastapi import Request, Response

from lmcache.embedded.manager import EmbeddedManager
from lmcache.embedded.operations import CacheOperations
from lmcache.errors import LMCacheError
from lmcache.http.errors import sendable
from lmcache.v1.internal_api_server.state import limiter

logger = logging.getLogger(__name__)

T = TypeVar("T")
Answers = dict[int | str, dict[str, Any]]
Describe = Callable[[Exception], Mapping[str, object]]

NO_ENGINE = "LMCache engine not configured."
NO_ADAPTER = "LMCache adapter not configured."
# Of one kind of call; whoever comes later waits for these, and for nobody else.
_AT_ONCE_MAX = 4


def _nothing_more(error: Exception) -> Mapping[str, object]:
    return {}


def find_adapter(request: Request) -> EmbeddedManager | None:
    return cast("EmbeddedManager | None", getattr(request.app.state, "lmcache_adapter", None))


def adapter_of(request: Request) -> EmbeddedManager:
    """For endpoints that are served beside a manager only."""
    return cast(EmbeddedManager, request.app.state.lmcache_adapter)


def find_engine(request: Request) -> CacheOperations | None:
    adapter = find_adapter(request)
    return None if adapter is None else adapter.lmcache_engine


async def run(request: Request, kind: str, work: Callable[[], T], at_once_max: int = _AT_ONCE_MAX) -> T:
    """In a thread. Calls of one kind take each other's places, never those of other endpoints."""
    places = limiter(request.app, kind, at_once_max)
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=places)


async def answer_after(
    request: Request, kind: str, work: Callable[[], Response], failure: str, describe: Describe = _nothing_more
) -> Response:
    """What `work` answers, in a thread; or 500 with `failure`, the reason, and what is documented besides."""
    try:
        return await run(request, kind, work)
    except LMCacheError as error:
        return refusal(500, failure, error, **describe(error))
    except Exception as error:  # the root of a call: log, answer as documented
        logger.exception("%s", failure)
        return refusal(500, failure, error, **describe(error))


async def answer_of_engine(
    request: Request, kind: str, work: Callable[[CacheOperations], Response], unavailable: str, failure: str
) -> Response:
    """The same of `work` with the engine; 503 with `unavailable` where there is none."""
    engine = find_engine(request)
    if engine is None:
        return refusal(503, unavailable, NO_ENGINE)
    return await answer_after(request, kind, lambda: work(engine), failure)


def answer(content: object, status: int = 200) -> Response:
    """Indented, in ASCII, since texts may hold what UTF-8 cannot say (names of files)."""
    return Response(json.dumps(content, indent=2), status, media_type="application/json")


def refusal(status: int, error: str, message: object, **also: object) -> Response:
    return answer({"error": error, "message": sendable(str(message)), **also}, status)


def described(**texts: str) -> Answers:
    """Error answers for the API's description: `described(_404="...")`."""
    return {int(code.removeprefix("_")): {"description": text} for code, text in texts.items()}


ENGINE_ANSWERS = described(_500="It failed; the message says why", _503="There is no engine here, or not yet")
