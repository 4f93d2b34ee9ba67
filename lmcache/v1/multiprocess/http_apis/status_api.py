"""A snapshot of the engine for operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from lmcache.v1.internal_api_server.state import script_runner

router = APIRouter(tags=["inspection"])

_NO_ENGINE: dict[int | str, dict[str, Any]] = {503: {"description": "The engine is not there yet"}}


# It waits for the engine's mutex, hence not on the event loop.
@router.get("/status", summary="What the engine holds and who is registered", responses=_NO_ENGINE)
def status(request: Request) -> JSONResponse:
    """Registered workers with their KV layout, sessions, what L1 and the L2 adapters hold. For people and
    debugging; for time series see /metrics."""
    engine = request.app.state.engine
    if engine is None:
        return JSONResponse({"error": "engine not initialized"}, 503)
    return JSONResponse({**engine.report_status(), "abandoned_scripts": script_runner(request.app).num_abandoned})
