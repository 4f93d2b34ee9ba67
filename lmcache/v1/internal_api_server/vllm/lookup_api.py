"""Changing the lookup client of a scheduler, or the lookup server of a worker, under traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.embedded.manager import SCHEDULER, WORKER, EmbeddedManager
from lmcache.errors import ConfigError, LMCacheError, LookupSwitchError
from lmcache.http.errors import sendable
from lmcache.v1.internal_api_server.vllm.adapter_calls import adapter_of, answer, described, run

router = APIRouter(tags=["lookup"])

_ANSWERS = described(_503="This process takes no part in lookups")
_CHANGE_ANSWERS = {
    **described(_400="There is nothing to change, or the configuration forbids it", _500="It failed"), **_ANSWERS,
}  # fmt: skip


@router.get("/lookup/info", responses=_ANSWERS, summary="Lookup client and server of this process")
async def info(request: Request) -> Response:
    """By class name, with the client inside another one in brackets. A scheduler has a client, a worker a server."""
    adapter = adapter_of(request)
    if adapter.lookup is None:
        return _unavailable()
    return answer(await run(request, "lookup info", adapter.get_lookup_info))


@router.post("/lookup/close", responses=_CHANGE_ANSWERS, summary="Close the lookup client or server")
async def close(request: Request) -> Response:
    """Until another is made, lookups miss."""
    return await _change(request, EmbeddedManager.close_lookup)


@router.post("/lookup/create", responses=_CHANGE_ANSWERS, summary="Make a lookup client or server")
async def create(
    request: Request, dryrun: Annotated[bool, Query(description="Only tell which it would be")] = False
) -> Response:
    """As the configuration of now asks for; change that first (POST /conf)."""
    return await _change(request, lambda adapter: adapter.create_lookup(dryrun))


@router.post("/lookup/recreate", responses=_CHANGE_ANSWERS, summary="Replace the lookup client or server")
async def recreate(request: Request) -> Response:
    """Closes it and makes one as the configuration of now asks for."""
    return await _change(request, EmbeddedManager.recreate_lookup)


async def _change(request: Request, change: Callable[[EmbeddedManager], dict[str, object]]) -> Response:
    adapter = adapter_of(request)
    role = adapter.lmcache_engine_metadata.role
    if adapter.lookup is None:
        return _unavailable()
    if role not in (SCHEDULER, WORKER):
        return answer({"error": "Unknown role"}, 400)

    def work() -> Response:
        try:
            return answer({**change(adapter), "role": role})
        except (LookupSwitchError, ConfigError) as error:
            return answer({"error": sendable(str(error)), "role": role}, 400)
        except LMCacheError as error:
            return answer({"error": sendable(str(error)), "role": role}, 500)

    return await run(request, "lookup", work)


def _unavailable() -> Response:
    return answer({"error": "API unavailable"}, 503)
