"""The settings of this engine, read and changed while it runs."""

from __future__ import annotations

import json
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.config import FAILED
from lmcache.config.json_safe import make_json_safe
from lmcache.http.errors import sendable
from lmcache.v1.internal_api_server.vllm.adapter_calls import adapter_of, answer, described, refusal, run

router = APIRouter(tags=["configuration"])

_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"type": "object", "description": "Values by key"}}},
}


@router.get("/conf", summary="Settings in effect")
async def conf(
    request: Request,
    names: Annotated[str | None, Query(description="Keys, separated by commas; all without it")] = None,
) -> Response:
    """Unknown names are left out. Values that look secret are shown as `***`."""
    config = adapter_of(request).config
    return answer(config.as_dict(names.split(",") if names else None))


@router.post(
    "/conf",
    responses=described(_400="The body cannot be read, or some key was not changed"),
    openapi_extra={"requestBody": _BODY},
    summary="Change settings",
)
async def change(request: Request) -> Response:
    """Those that can be changed are, together where they only make sense together; the others are listed with the
    reason. Components notice."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        return refusal(400, "Invalid JSON body", error)
    if not isinstance(body, dict):
        return answer({"error": "Request body must be a JSON object"}, 400)
    config = adapter_of(request).config
    # A component may take its time to follow; the order of changes is that of the calls.
    return await run(request, "conf", lambda: _apply(config, body), at_once_max=1)


def _apply(config: LMCacheEngineConfig, values: dict[str, object]) -> Response:
    updated, refused = config.set_all(values)
    errors = {key: refused[key].reason for key in values if key in refused}
    messages = {key: sendable(str(refused[key])) for key, reason in errors.items() if reason == FAILED}
    content: dict[str, Any] = {"updated": cast("dict[str, object]", make_json_safe(updated))}
    if errors:
        content["errors"] = errors
    if messages:
        content["messages"] = messages
    return answer(content, 400 if errors else 200)
