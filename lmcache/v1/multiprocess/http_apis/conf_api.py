"""The settings this process runs with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lmcache.config.json_safe import make_json_safe
from lmcache.v1.internal_api_server.state import configs

router = APIRouter(tags=["inspection"])

# Settings that the documents show in the group `mp`, wherever they are kept.
_ALSO_IN_MP = ("http_host", "http_port")
_NOT_YET: dict[int | str, dict[str, Any]] = {503: {"description": "The settings are not there yet"}}


@router.get("/conf", responses=_NOT_YET, summary="The settings in effect")
@router.get("/config", responses=_NOT_YET, summary="The same under its later name")
async def conf(request: Request) -> Response:
    """Every group of settings by its name, with defaults and the environment applied. Values that
    look secret are shown as `***`."""
    groups = configs(request.app)
    if groups is None:
        return JSONResponse({"error": "configs not initialized"}, 503)
    text = json.dumps(_document(groups), indent=2, ensure_ascii=False, allow_nan=False)
    return Response(text, media_type="application/json")


def _document(groups: Mapping[str, object]) -> dict[str, Any]:
    document = cast("dict[str, Any]", make_json_safe(groups))
    if "mp" in document and "http" in document:
        http = document["http"]
        document["mp"] = {**{name: http[name] for name in _ALSO_IN_MP}, **document["mp"]}
    return document
