"""Emptying L1 on request, under both names that the endpoint has had."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictBool

from lmcache.engine.cache_server import MPCacheServer

router = APIRouter(tags=["cache control"])

_CLEARABLE_TIER = "l1"
# They follow each other, and may take long: those that wait must not use up the threads of other endpoints.
_limiter = CapacityLimiter(1)

_NO_ENGINE: dict[int | str, dict[str, Any]] = {503: {"description": "The engine is not there yet"}}
_REFUSED: dict[int | str, dict[str, Any]] = {400: {"description": "A tier that cannot be cleared"}, **_NO_ENGINE}


class ClearRequest(BaseModel):
    """`force`: also what a transfer has locked or is writing."""

    tier: str = _CLEARABLE_TIER
    force: StrictBool = False


@router.post("/clear-cache", summary="Clear L1, locked or not", responses=_NO_ENGINE)
async def clear_cache(request: Request) -> JSONResponse:
    """Destructive: transfers under way fail and are computed by the engine. L2, sessions and registrations stay.
    The body is ignored."""
    engine = request.app.state.engine
    if engine is None:
        return JSONResponse({"status": "error", "reason": "engine not initialized"}, 503)
    await _clear(engine, True)
    return JSONResponse({"status": "ok"})


@router.post("/cache/clear", summary="Clear a tier", responses=_REFUSED)
async def clear_tier(request: Request, wanted: ClearRequest | None = None) -> JSONResponse:
    """Without `force`, what a transfer holds locked or is writing stays."""
    wanted = wanted or ClearRequest()
    engine = request.app.state.engine
    if engine is None:
        raise HTTPException(503, "engine not initialized")
    if wanted.tier != _CLEARABLE_TIER:
        raise HTTPException(400, f"tier {wanted.tier[:50]!r} cannot be cleared (allowed: '{_CLEARABLE_TIER}')")
    await _clear(engine, wanted.force)
    return JSONResponse({"status": "ok", "cleared": {"tier": wanted.tier}})


async def _clear(engine: MPCacheServer, force: bool) -> None:
    await anyio.to_thread.run_sync(engine.clear, force, limiter=_limiter)
