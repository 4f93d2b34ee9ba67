"""Freezing the cache: it answers from L1 as it is, and nothing in it changes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.v1.internal_api_server.vllm.adapter_calls import ENGINE_ANSWERS, answer, answer_of_engine

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

    def ask(engine: CacheOperations) -> Response:
        is_frozen = engine.is_frozen
        return _body(is_frozen, f"Freeze mode is {'enabled' if is_frozen else 'disabled'}")

    return await answer_of_engine(
        request, "freeze status", ask, _unavailable("status"), "Failed to get freeze mode status"
    )


async def _set(request: Request, verb: str, is_frozen: bool) -> Response:
    def change(engine: CacheOperations) -> Response:
        engine.freeze(is_frozen)
        return _body(is_frozen, f"Freeze mode {verb}d successfully")

    return await answer_of_engine(request, "freeze", change, _unavailable(verb), f"Failed to {verb} freeze mode")


def _unavailable(verb: str) -> str:
    return f"/freeze/{verb} API is unavailable"


def _body(is_frozen: bool, message: str) -> Response:
    return answer({"status": "success", "freeze": is_frozen, "message": message})
