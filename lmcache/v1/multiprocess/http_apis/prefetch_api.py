"""Warming L1 with a prompt that L2 holds, ahead of the requests that will need it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field

from lmcache.errors import KeyFormatError
from lmcache.http.path_parameters import rest_of_path
from lmcache.v1.multiprocess.http_apis.operator_calls import (
    answer_json,
    described,
    refusal,
    require_engine,
    run_in_thread,
)

router = APIRouter(tags=["cache control"])

_TOKENS_MAX = 1_000_000
_SOURCE, _TARGET = "l2", "l1"
_SUBMIT_ANSWERS = described(
    _400="A model name or salt that breaks the rules of keys, or tiers other than from l2 to l1",
    _503="The engine is not there yet",
)
_ASK_ANSWERS = described(_404="No such prefetch, or one of long ago", _503="The engine is not there yet")

TokenId = Annotated[int, Field(strict=True, ge=0, le=0xFFFF_FFFF)]


class PrefetchBody(BaseModel):
    """`token_ids` from the beginning of the prompt; an incomplete last chunk does not count."""

    model_name: str
    world_size: int = Field(strict=True, ge=1, le=255, description="Ranks of the engines that are to use it")
    token_ids: list[TokenId] = Field(max_length=_TOKENS_MAX, fail_fast=True)
    cache_salt: str = ""
    source_tier: str = _SOURCE
    target_tier: str = _TARGET


@router.post("/cache/prefetches", status_code=202, summary="Bring a prompt from L2 to L1", responses=_SUBMIT_ANSWERS)
async def submit_prefetch(request: Request, body: PrefetchBody) -> Response:
    """Goes on behind the answer. `noop`: the prompt has no whole chunk, no engine of that model and size is
    registered, or there is no L2."""

    def submit() -> Response:
        engine = require_engine(request)
        if (body.source_tier, body.target_tier) != (_SOURCE, _TARGET):
            raise HTTPException(400, f"a prefetch goes from source_tier '{_SOURCE}' to target_tier '{_TARGET}' only")
        try:
            ticket = engine.prefetch_tokens(body.model_name, body.world_size, body.token_ids, body.cache_salt)
        except KeyFormatError as error:
            raise refusal(400, error) from error
        if ticket is None:
            return answer_json({"chunks": 0, "status": "noop"}, 202)
        answer = {"request_id": ticket.request_id, "chunks": ticket.num_chunks, "status": "submitted"}
        return answer_json(answer, 202)

    return await run_in_thread(submit)


@router.get("/cache/prefetches/" + rest_of_path("request_id"), summary="How a prefetch fares", responses=_ASK_ANSWERS)
async def ask_prefetch(request: Request, request_id: str) -> Response:
    """Keys are chunks times ranks, for every engine that could use them; those found are in L1 now, as far as
    they follow each other without a gap."""
    engine = require_engine(request)
    ticket = await run_in_thread(lambda: engine.prefetch_ticket(request_id))
    if ticket is None:
        raise HTTPException(404, f"no prefetch has request_id {request_id[:100]!r}")
    answer: dict[str, object] = {"request_id": request_id, "status": "pending"}
    if ticket.is_completed:
        answer |= {"status": "completed", "found_keys": ticket.found_keys, "total_keys": ticket.total_keys}
    return answer_json(answer)
