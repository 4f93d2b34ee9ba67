"""Liveness: is the HTTP server there, and is the engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter(tags=["liveness"])

_NO_ENGINE: dict[int | str, dict[str, Any]] = {503: {"description": "The engine is not there yet, or failed to open"}}


@router.get("/", summary="Is the HTTP server there")
async def root() -> dict[str, str]:
    """Never touches the engine."""
    return {"status": "ok", "service": "LMCache HTTP API"}


@router.get("/healthcheck", summary="Is the engine there", responses=_NO_ENGINE)
async def healthcheck(request: Request) -> JSONResponse:
    """For liveness and readiness probes; asks only whether the engine is there."""
    if request.app.state.engine is None:
        return JSONResponse({"status": "unhealthy", "reason": "engine not initialized"}, 503)
    return JSONResponse({"status": "healthy"})
