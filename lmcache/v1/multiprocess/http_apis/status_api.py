"""A snapshot of the engine for operators."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter()


@router.get("/status")
def status(request: Request) -> JSONResponse:
    """Waits for the engine's mutex, hence not on the event loop."""
    engine = request.app.state.engine
    if engine is None:
        return JSONResponse({"error": "engine not initialized"}, 503)
    return JSONResponse(engine.report_status())
