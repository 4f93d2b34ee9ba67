"""Objects of either tier, listed and deleted by key: the later names of /l2/keys and DELETE /l2."""

from __future__ import annotations

from enum import StrEnum

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StrictBool

from lmcache.core.keys import ObjectKey
from lmcache.engine.cache_server import MPCacheServer
from lmcache.errors import L2Error, PageTokenError
from lmcache.l2.base import Deleted
from lmcache.v1.multiprocess.http_apis.l2_api import (
    PAGE_SIZE_DEFAULT,
    AdapterQuery,
    ModelQuery,
    PageSizeQuery,
    PageTokenQuery,
)
from lmcache.v1.multiprocess.http_apis.object_keys import EncodedObjectKeys, decode_keys, encode_page
from lmcache.v1.multiprocess.http_apis.operator_calls import (
    answer_json,
    described,
    refusal,
    require_adapter,
    require_engine,
    run_blocking,
)

router = APIRouter(tags=["cache control"])

_LIST_ANSWERS = described(
    _400="A page token that was never given out",
    _404="No such adapter",
    _503="The engine is not there yet, it has no L2 adapters, the adapter cannot list or cannot be reached",
)
_DELETE_ANSWERS = described(
    _400="Too many keys, or one that breaks the rules of keys",
    _404="No such adapter",
    _503="The engine is not there yet, or it has no L2 adapters",
)


class Tier(StrEnum):
    L1 = "l1"
    L2 = "l2"


class Tiers(StrEnum):
    L1 = "l1"
    L2 = "l2"
    ALL = "all"


class DeleteObjectsRequest(BaseModel):
    keys: EncodedObjectKeys
    tier: Tiers = Tiers.L2
    force: StrictBool = Field(False, description="In L1: also what a transfer has locked or is writing")
    adapter: str | None = Field(None, description="Class name or configured type; default: the first adapter")


@router.get("/cache/objects", summary="What a tier holds, page by page", responses=_LIST_ANSWERS)
async def list_objects(
    request: Request,
    tier: Tier = Tier.L2,
    adapter: AdapterQuery = None,
    model_name: ModelQuery = None,
    page_size: PageSizeQuery = PAGE_SIZE_DEFAULT,
    page_token: PageTokenQuery = None,
) -> Response:
    """As /l2/keys. `shared`: other servers store there too. L1 has no adapter."""

    def list_page() -> Response:
        engine = require_engine(request)
        try:
            if tier is Tier.L1:
                page = engine.l1_objects.page(model_name, page_size, page_token or None)
                return answer_json({**encode_page(None, page), "shared": False})
            found = require_adapter(engine.storage, adapter)
            page = engine.storage.list_l2_keys(found, model_name, page_size, page_token or None)
        except PageTokenError as error:
            raise refusal(400, error) from error
        except L2Error as error:
            raise refusal(503, error) from error
        return answer_json({**encode_page(found.adapter.class_name, page), "shared": found.adapter.is_shared})

    return await run_blocking(list_page)


@router.delete("/cache/objects", summary="Delete keys from a tier, or from both", responses=_DELETE_ANSWERS)
async def delete_objects(request: Request, body: DeleteObjectsRequest) -> Response:
    """`deleted` counts keys of which something was deleted and nothing left; `skipped` those that are absent
    or in use. What an L2 adapter is loading stays, `force` or not. When the adapter fails the answer is 200
    with `ok` false and the reason in `error`."""

    def delete() -> Response:
        keys = list(dict.fromkeys(decode_keys(body.keys)))
        return answer_json(_delete(require_engine(request), body, keys))

    return await run_blocking(delete)


def _delete(engine: MPCacheServer, body: DeleteObjectsRequest, keys: list[ObjectKey]) -> dict[str, object]:
    """L2 first: what is gone there cannot come back to L1."""
    outcomes: list[Deleted] = []
    error = ""
    has_l2 = engine.storage.has_adapters or body.adapter is not None
    if body.tier is Tiers.L2 or (body.tier is Tiers.ALL and has_l2):
        tier = require_adapter(engine.storage, body.adapter)
        try:
            outcomes.append(engine.storage.delete_l2_keys(tier, keys))
        except L2Error as failure:
            error = str(failure)
    if body.tier is not Tiers.L2:
        outcomes.append(engine.l1_objects.delete(keys, body.force))
    left = {key for outcome in outcomes for key in outcome.leased}
    gone = {key for outcome in outcomes for key in outcome.deleted} - left
    answer: dict[str, object] = {"deleted": len(gone), "skipped": len(keys) - len(gone), "ok": not error}
    return answer | ({"error": error} if error else {})
