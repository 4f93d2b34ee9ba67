"""Whether L1 keeps what is stored and loaded, which documents call its hot cache."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.v1.internal_api_server.vllm.adapter_calls import ENGINE_ANSWERS, adapter_of, answer, answer_of_engine

router = APIRouter(tags=["hot cache"])

_UNAVAILABLE = "hot_cache API is unavailable"


@router.put("/hot_cache/enable", responses=ENGINE_ANSWERS, summary="Let L1 keep what passes through it")
async def enable(request: Request) -> Response:
    """What is stored or loaded from now on stays in L1."""
    return await _set(request, "enable", True)


@router.put("/hot_cache/disable", responses=ENGINE_ANSWERS, summary="Empty L1 and keep it empty")
async def disable(request: Request) -> Response:
    """What L1 holds goes; it is then only the way to and from the other tiers."""
    return await _set(request, "disable", False)


@router.get("/hot_cache/status", responses=ENGINE_ANSWERS, summary="Whether L1 keeps anything")
async def status(request: Request) -> Response:
    """Asks only."""

    def ask(engine: CacheOperations) -> Response:
        is_on = engine.has_hot_cache
        return _body(is_on, f"Hot cache is {'enabled' if is_on else 'disabled'}")

    return await answer_of_engine(request, "hot cache status", ask, _UNAVAILABLE, "Failed to get hot cache status")


async def _set(request: Request, verb: str, is_on: bool) -> Response:
    config = adapter_of(request).config

    def change(engine: CacheOperations) -> Response:
        engine.set_hot_cache(is_on)
        config.set("local_cpu", is_on)  # which says the same in GET /conf, and may be changed back there
        return _body(is_on, f"Hot cache {verb}d successfully")

    return await answer_of_engine(request, "hot cache", change, _UNAVAILABLE, f"Failed to {verb} hot cache")


def _body(is_on: bool, message: str) -> Response:
    return answer({"status": "success", "hot_cache": is_on, "message": message})
