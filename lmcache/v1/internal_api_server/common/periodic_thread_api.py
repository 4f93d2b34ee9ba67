"""How the loops of this process fare. Answered on the event loop: nothing that hangs in a thread holds it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from lmcache.config.json_safe import make_json_safe
from lmcache.http.path_parameters import rest_of_path
from lmcache.telemetry.periodic import PeriodicThread, ThreadLevel
from lmcache.v1.internal_api_server.state import periodic_threads

router = APIRouter(tags=["diagnostics"])

# Loops without which the process does not do its work.
_VITAL = (ThreadLevel.CRITICAL, ThreadLevel.HIGH)
_ERROR_SCHEMA = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}


@router.get(
    "/periodic-threads",
    responses={400: {"description": "No such level", "content": _ERROR_SCHEMA}},
    summary="All periodic threads",
)
async def list_threads(
    request: Request,
    level: Annotated[str, Query(description="Only threads of this level: critical, high, medium or low")] = "",
    running_only: Annotated[bool, Query(description="Only threads that have been started and have not ended")] = False,
    active_only: Annotated[bool, Query(description="Only threads that ran lately")] = False,
) -> JSONResponse:
    """Counts by level of all threads, and the state of those that fit the parameters."""
    levels = [known.value for known in ThreadLevel]
    if level and level.lower() not in levels:
        return JSONResponse({"error": f"Invalid level: {level}. Valid values: {', '.join(levels)}"}, 400)
    known = periodic_threads(request.app).all()
    shown = [
        thread
        for thread in known
        if (not level or thread.level == level.lower())
        and (thread.is_running or not running_only)
        and (thread.is_active or not active_only)
    ]
    return JSONResponse({"summary": _summary(known), "threads": [_described(thread) for thread in shown]})


@router.get(
    "/periodic-threads/" + rest_of_path("thread_name"),
    responses={404: {"description": "No such thread", "content": _ERROR_SCHEMA}},
    summary="One periodic thread",
)
async def one_thread(request: Request, thread_name: str) -> JSONResponse:
    """The same object as in the list of all."""
    thread = periodic_threads(request.app).get(thread_name)
    if thread is None:
        return JSONResponse({"error": f"Thread not found: {thread_name}"}, 404)
    return JSONResponse(_described(thread))


@router.get("/periodic-threads-health", summary="Whether the vital periodic threads do their work")
async def health(request: Request) -> JSONResponse:
    """Threads of the levels critical and high that run, but have shown no life for three
    intervals. Always 200; `healthy` tells."""
    stalled = [
        thread
        for thread in periodic_threads(request.app).all()
        if thread.level in _VITAL and thread.is_running and not thread.is_active
    ]
    unhealthy = [
        {
            "name": thread.name,
            "level": thread.level,
            "last_run_ago": thread.last_run_ago_s(),
            "interval": thread.interval_s,
        }
        for thread in stalled
    ]
    return JSONResponse({"healthy": not stalled, "unhealthy_count": len(stalled), "unhealthy_threads": unhealthy})


def _summary(threads: Iterable[PeriodicThread]) -> dict[str, object]:
    by_level = {level.value: {"total": 0, "running": 0, "active": 0} for level in ThreadLevel}
    for thread in threads:
        counts = by_level[thread.level]
        counts["total"] += 1
        counts["running"] += thread.is_running
        counts["active"] += thread.is_active
    sums = {key: sum(counts[key] for counts in by_level.values()) for key in ("total", "running", "active")}
    return {**{f"{key}_count": number for key, number in sums.items()}, "by_level": by_level}


def _described(thread: PeriodicThread) -> dict[str, object]:
    total_runs = thread.total_runs  # before the rest: what it counts has been told by then
    summary = thread.last_summary
    return {
        "name": thread.name,
        "level": thread.level,
        "interval": thread.interval_s,
        "init_wait": thread.init_wait_s,
        "is_running": thread.is_running,
        "is_active": thread.is_active,
        "last_run_time": thread.last_run_time,
        "last_run_ago": thread.last_run_ago_s(),
        "total_runs": total_runs,
        "failed_runs": thread.failed_runs,
        "success_rate": thread.success_percent,
        "last_summary": make_json_safe(dataclasses.asdict(summary)) if summary else None,
    }
