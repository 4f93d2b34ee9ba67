"""Freezing the cache: it answers from L1 as it is, and nothing in it changes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    ENGINE_ANSWERS,
    NO_ENGINE,
    answer,
    answer_after,
    find_engine,
    refusal,
)

router = APIRouter(tags=["freeze"])


@router.put("/freeze/enable", responses=ENGINE_ANSWERS, summary="Freeze the cache")
async def enable(request: Request) -> Response:
    """From now on nothing is stored, evicted or brought up from other tiers, and lookups ask L1 alone."""
    return await _set(request, "enable", True)


@router.put("/freeze/disable", responses=ENGINE_ANSWERS, summary="Let the cache change again")
async def disable(request: Request) -> Response:
    """Stores, evictions and loads go on as before."""
    return await _set(request, "disable", False)


@router.get("/freeze/status", responses=ENGINE_ANSWERS, summary="Whether the cache is frozen")
async def status(request: Request) -> Response:
    """Asks only."""
    engine = find_engine(request)
    if engine is None:
        return _unavailable("status")

    def ask() -> Response:
        is_frozen = engine.is_frozen
        return _body(is_frozen, f"Freeze mode is {'enabled' if is_frozen else 'disabled'}")

    return await answer_after(request, "freeze status", ask, "Failed to get freeze mode status")


async def _set(request: Request, verb: str, is_frozen: bool) -> Response:
    engine = find_engine(request)
    if engine is None:
        return _unavailable(verb)

    def change() -> Response:
        engine.freeze(is_frozen)
        return _body(is_frozen, f"Freeze mode {verb}d successfully")

    return await answer_after(request, "freeze", change, f"Failed to {verb} freeze mode")


def _unavailable(verb: str) -> Response:
    return refusal(503, f"/freeze/{verb} API is unavailable", NO_ENGINE)


def _body(is_frozen: bool, message: str) -> Response:
    return answer({"status": "success", "freeze": is_frozen, "message": message})
