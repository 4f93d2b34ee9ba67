"""Everything on the default Prometheus registry of this process, in its text format."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import REGISTRY, generate_latest

router = APIRouter()


@router.get("/metrics")
def metrics() -> PlainTextResponse:
    """Gauges may wait for the engine's mutex, hence not on the event loop."""
    return PlainTextResponse(generate_latest(REGISTRY))
