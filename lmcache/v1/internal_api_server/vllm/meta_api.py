"""What an engine is: its model, its rank, how its KV lies."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.config.json_safe import make_json_safe
from lmcache.v1.internal_api_server.vllm.adapter_calls import adapter_of, answer

router = APIRouter(tags=["configuration"])


@router.get("/meta", summary="Facts of this engine")
async def meta(
    request: Request,
    names: Annotated[str | None, Query(description="Names, separated by commas; all without it")] = None,
) -> Response:
    """Unknown names are left out."""
    metadata = adapter_of(request).lmcache_engine_metadata
    known = {field.name: getattr(metadata, field.name) for field in dataclasses.fields(metadata)}
    asked = names.split(",") if names else list(known)
    return answer(make_json_safe({name: known[name] for name in asked if name in known}))
