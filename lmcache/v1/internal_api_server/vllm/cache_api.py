"""Emptying the cache, and storing and retrieving tokens that no request has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.embedded.slot_log import slots_line
from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    ENGINE_ANSWERS,
    NO_ENGINE,
    adapter_of,
    answer,
    answer_after,
    described,
    find_engine,
    refusal,
)

logger = logging.getLogger(__name__)

router = APIRouter(tags=["cache"])

TokensMock = Annotated[str | None, Query(description="Required. `start,end`: the tokens start ... end - 1")]
_MOCK_ANSWERS = {**described(_400="`tokens_mock` is missing or malformed"), **ENGINE_ANSWERS}
# Token ids are hashed as 32 bits. No prompt is nearly as long as this.
_TOKEN_ID_END = 1 << 32
_TOKENS_MAX = 1 << 24


@router.delete("/cache/clear", responses=ENGINE_ANSWERS, summary="Remove what is cached")
async def clear(
    request: Request,
    locations: Annotated[list[str] | None, Query(description="Only from these backends; repeat it for each")] = None,
) -> Response:
    """From all backends, or from the ones named; unknown names remove nothing. `num_removed` counts objects. What a
    transfer holds stays. A body is not read."""
    engine = _engine_of(request)
    if isinstance(engine, Response):
        return engine

    def work() -> Response:
        return answer({"status": "success", "num_removed": engine.clear(locations or None)})

    return await answer_after(request, "cache clear", work, "Failed to clear cache")


@router.post("/cache/store", responses=_MOCK_ANSWERS, summary="Store pages under made-up tokens")
async def store(request: Request, tokens_mock: TokensMock = None) -> Response:
    """The pages of slots 0 ..., under keys that no request can make. Whole chunks are stored."""

    def body(engine: CacheOperations, tokens: range) -> dict[str, object]:
        engine.store_mock(tokens)
        _log_slots(request, "store", len(tokens))
        return {"num_tokens": len(tokens)}

    return await _with_tokens(request, tokens_mock, "store", body)


@router.post("/cache/retrieve", responses=_MOCK_ANSWERS, summary="Load what was stored under made-up tokens")
async def retrieve(request: Request, tokens_mock: TokensMock = None) -> Response:
    """`num_retrieved`: the leading tokens that were found and loaded. Pages of running requests are never written."""

    def body(engine: CacheOperations, tokens: range) -> dict[str, object]:
        num_retrieved = engine.retrieve_mock(tokens)
        _log_slots(request, "retrieve", num_retrieved)
        return {"num_tokens": len(tokens), "num_retrieved": num_retrieved}

    return await _with_tokens(request, tokens_mock, "retrieve", body)


async def _with_tokens(
    request: Request, given: str | None, verb: str, body: Callable[[CacheOperations, range], dict[str, object]]
) -> Response:
    engine = _engine_of(request)
    if isinstance(engine, Response):
        return engine
    if not given:
        return refusal(400, "Missing parameters", "Must specify either tokens_input or tokens_mock")
    try:
        tokens = _parse(given)
    except ValueError as error:
        return refusal(400, "Invalid tokens_mock format", f"tokens_mock must be 'start,end': {error}")

    def work() -> Response:
        return answer({"status": "success", **body(engine, tokens)})

    def describe(error: Exception) -> dict[str, object]:
        return {"exception_type": type(error).__name__}

    return await answer_after(request, f"cache {verb}", work, f"Failed to {verb} cache", describe)


def _log_slots(request: Request, verb: str, num_tokens: int) -> None:
    """As for requests, under a name that stands for these calls."""
    if adapter_of(request).logs_slots:
        logger.info("%s", slots_line(verb.capitalize(), f"cache_api_{verb}", num_tokens, range(num_tokens)))


def _parse(given: str) -> range:
    """Raises ValueError with the documented reason."""
    parts = given.split(",")
    if len(parts) != 2:
        raise ValueError("tokens_mock must contain exactly 2 numbers")
    start, end = int(parts[0]), int(parts[1])
    if start >= end:
        raise ValueError("start must be less than end")
    if start < 0 or end > _TOKEN_ID_END:
        raise ValueError(f"tokens are numbers from 0 to {_TOKEN_ID_END - 1}")
    if end - start > _TOKENS_MAX:
        raise ValueError(f"these are {end - start} tokens, at most {_TOKENS_MAX} are taken at once")
    return range(start, end)


def _engine_of(request: Request) -> CacheOperations | Response:
    engine = find_engine(request)
    return refusal(503, "LMCache API is unavailable", NO_ENGINE) if engine is None else engine
