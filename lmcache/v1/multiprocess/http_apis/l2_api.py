"""What L2 adapters there are, what one of them holds, and its deletion by key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from lmcache.errors import L2Error, ListingUnsupportedError, PageTokenError
from lmcache.storage.tier import Tier
from lmcache.v1.multiprocess.http_apis.object_keys import EncodedObjectKeys, decode_keys, encode_page
from lmcache.v1.multiprocess.http_apis.operator_calls import (
    answer_json,
    described,
    refusal,
    require_adapter,
    require_engine,
    run_blocking,
)

router = APIRouter(tags=["L2 storage"])

PAGE_SIZE_DEFAULT = 500
PAGE_SIZE_MAX = 5000

AdapterQuery = Annotated[str | None, Query(description="Class name or configured type; default: the first adapter")]
ModelQuery = Annotated[str | None, Query(description="Only keys of exactly this model")]
PageSizeQuery = Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX, description="Keys at most in one answer")]
PageTokenQuery = Annotated[str | None, Query(description="The `next_page_token` of the page before")]

_NO_ENGINE = described(_503="The engine is not there yet")
_NO_ADAPTER = described(_404="No such adapter", _503="The engine is not there yet, or it has no L2 adapters")
_DELETE_ANSWERS = {**_NO_ADAPTER, **described(_400="Too many keys, or one that breaks the rules of keys")}
_LIST_ANSWERS = described(
    _400="A page token that this adapter never gave out",
    _404="No such adapter",
    _501="The adapter cannot list",
    _503="The engine is not there yet, it has no L2 adapters, or the backend cannot be reached",
)


class DeleteKeysRequest(BaseModel):
    """At most 10000 keys; one that is named twice counts twice."""

    keys: EncodedObjectKeys


@router.get("/l2/adapters", summary="The L2 adapters in their order", responses=_NO_ENGINE)
async def list_adapters(request: Request) -> Response:
    """The first one is what the other calls address where they name none."""
    tiers = require_engine(request).storage.tiers()
    return answer_json({"adapters": [_describe(tier, position) for position, tier in enumerate(tiers)]})


@router.get("/config/adapters", summary="The L2 adapters, under the later name", responses=_NO_ENGINE)
async def list_configured_adapters(request: Request) -> Response:
    """As /l2/adapters, with the tier, and whether /reconfigure knows the adapter."""
    tiers = require_engine(request).storage.tiers()
    entries = [
        {**_describe(tier, position), "tier": "l2", "reconfigurable": tier.adapter.is_reconfigurable}
        for position, tier in enumerate(tiers)
    ]
    return answer_json({"adapters": entries})


def _describe(tier: Tier, position: int) -> dict[str, object]:
    return {"index": tier.index, "type_name": tier.adapter.class_name, "primary": position == 0}


@router.delete("/l2", summary="Delete keys from an L2 adapter", responses=_DELETE_ANSWERS)
async def delete_keys(request: Request, body: DeleteKeysRequest, adapter: AdapterQuery = None) -> Response:
    """Keys that are absent or in use are skipped. L1 is not touched. When the adapter fails the answer
    is 200 as well, with `ok` false and the reason in `error`."""

    def delete() -> Response:
        keys = decode_keys(body.keys)
        storage = require_engine(request).storage
        tier = require_adapter(storage, adapter)
        answer: dict[str, object] = {"requested": len(keys), "adapter": tier.adapter.class_name, "ok": True}
        try:
            storage.delete_l2_keys(tier, keys)
        except L2Error as error:
            answer |= {"ok": False, "error": str(error)}
        return answer_json(answer)

    return await run_blocking(delete)


@router.get("/l2/keys", summary="What an L2 adapter holds, page by page", responses=_LIST_ANSWERS)
async def list_keys(
    request: Request,
    adapter: AdapterQuery = None,
    model_name: ModelQuery = None,
    page_size: PageSizeQuery = PAGE_SIZE_DEFAULT,
    page_token: PageTokenQuery = None,
) -> Response:
    """Keys stored or deleted meanwhile may be listed or not; one that stays is listed once."""

    def list_page() -> Response:
        storage = require_engine(request).storage
        tier = require_adapter(storage, adapter)
        try:
            page = storage.list_l2_keys(tier, model_name, page_size, page_token or None)
        except ListingUnsupportedError as error:
            text = f"L2 adapter {tier.name!r} does not support listing: {error}"
            raise HTTPException(501, text) from error
        except PageTokenError as error:
            raise refusal(400, error) from error
        except L2Error as error:
            raise refusal(503, error) from error
        return answer_json(encode_page(tier.adapter.class_name, page))

    return await run_blocking(list_page)
