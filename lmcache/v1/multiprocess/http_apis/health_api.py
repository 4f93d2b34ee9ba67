"""Liveness: is the HTTP server there, and is the engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter()


@router.get("/")
async def root() -> dict[str, str]:
    """Never touches the engine."""
    return {"status": "ok", "service": "LMCache HTTP API"}


@router.get("/healthcheck")
async def healthcheck(request: Request) -> JSONResponse:
    """For liveness and readiness probes; asks only whether the engine is there."""
    if request.app.state.engine is None:
        return JSONResponse({"status": "unhealthy", "reason": "engine not initialized"}, 503)
    return JSONResponse({"status": "healthy"})
