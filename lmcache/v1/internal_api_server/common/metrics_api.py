"""What the application's Prometheus registry holds, in its text format, and the way back to 0."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse

from lmcache.v1.internal_api_server.state import metrics as metrics_of
from lmcache.v1.internal_api_server.state import metrics_rendering

router = APIRouter(tags=["observability"])


@router.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus' text format, at most a second old."""
    return PlainTextResponse(await metrics_rendering(request.app).text())


@router.post("/metrics/reset", response_class=PlainTextResponse, summary="Counters and histograms back to 0")
async def reset(request: Request) -> PlainTextResponse:
    """For tests and benchmarks. Series stay, gauges go on telling the present, and what other
    libraries count is left alone."""
    reset_observability_metrics(request.app)
    return PlainTextResponse("ok")


def reset_observability_metrics(app: FastAPI) -> None:
    """On the application's event loop, to which the rendering belongs."""
    metrics_of(app).reset()
    metrics_rendering(app).invalidate()
