"""Quotas: bytes that each tenant may keep, and what it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from lmcache.core.keys import check_cache_salt
from lmcache.core.sizes import GIB
from lmcache.engine.cache_server import MPCacheServer
from lmcache.errors import ConfigError, KeyFormatError, QuotaFileError
from lmcache.http.path_parameters import rest_of_path
from lmcache.quota.manager import bytes_of_gb
from lmcache.v1.multiprocess.http_apis.operator_calls import (
    NO_ENGINE,
    answer_json,
    described,
    find_engine,
    run_in_thread,
)

router = APIRouter(tags=["quotas"])

_ONE = "/quota/" + rest_of_path("cache_salt")
# A path cannot name the empty salt.
_SENTINEL = "_default"

_NO_ENGINE = described(_503="The engine is not there yet")
_READ_ANSWERS = {**_NO_ENGINE, **described(_400="A salt that breaks the rules of keys")}
_CHANGE_ANSWERS = {
    **_READ_ANSWERS, **described(_503="The engine is not there yet, or the file of quotas cannot be written"),
}  # fmt: skip
_SET_ANSWERS = {**_CHANGE_ANSWERS, **described(_400="A salt that breaks the rules of keys, or a body that is no limit")}
_SET_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"limit_gb": {"type": "number", "minimum": 0, "description": "GB of 1024^3 bytes"}},
                    "required": ["limit_gb"],
                }
            }
        },
    }
}


@router.put(_ONE, summary="Set a tenant's quota", responses=_SET_ANSWERS, openapi_extra=_SET_BODY)
async def set_quota(request: Request, cache_salt: str) -> Response:
    """Creates or changes it. Nothing is refused for a quota: what is over it is evicted at the next turn."""
    text = await request.body()

    def put(engine: MPCacheServer, salt: str) -> dict[str, object]:
        limit_gb = _read_limit(text)
        try:
            limit_bytes = bytes_of_gb(limit_gb)
        except ConfigError as error:
            raise HTTPException(400, "limit_gb must be finite") from error
        engine.quotas.set(salt, limit_bytes)
        return {"cache_salt": _shown(salt), "limit_gb": limit_gb, "status": "ok"}

    return await _answer(request, cache_salt, put)


@router.get(_ONE, summary="A tenant's quota and what it holds", responses=_READ_ANSWERS)
async def get_quota(request: Request, cache_salt: str) -> Response:
    """`exists` false: it has no quota of its own."""

    def get(engine: MPCacheServer, salt: str) -> dict[str, object]:
        return {
            "cache_salt": _shown(salt),
            "limit_gb": engine.quotas.limit_bytes(salt) / GIB,
            "current_usage_gb": engine.usage.bytes_by_salt().get(salt, 0) / GIB,
            "exists": engine.quotas.get(salt) is not None,
        }

    return await _answer(request, cache_salt, get)


@router.delete(_ONE, summary="Take a tenant's quota away", responses=_CHANGE_ANSWERS)
async def delete_quota(request: Request, cache_salt: str) -> Response:
    """What it holds is over its limit then."""

    def delete(engine: MPCacheServer, salt: str) -> dict[str, object]:
        status = "removed" if engine.quotas.remove(salt) else "not_found"
        return {"cache_salt": _shown(salt), "status": status}

    return await _answer(request, cache_salt, delete)


@router.get("/quota", summary="Every quota and what its tenant holds", responses=_NO_ENGINE)
async def list_quotas(request: Request) -> Response:
    """Tenants with a quota of their own, in the order they were registered."""

    def list_all(engine: MPCacheServer, _: str) -> dict[str, object]:
        usage = engine.usage.bytes_by_salt()
        users = {
            _shown(salt): {"limit_gb": limit_bytes / GIB, "current_usage_gb": usage.get(salt, 0) / GIB}
            for salt, limit_bytes in engine.quotas.list().items()
        }
        return {"users": users}

    return await _answer(request, _SENTINEL, list_all)


async def _answer(
    request: Request, path_salt: str, work: Callable[[MPCacheServer, str], dict[str, object]]
) -> Response:
    """What `work` says to engine and salt; errors in the form of this family."""
    engine = find_engine(request)
    if engine is None:
        return answer_json({"error": NO_ENGINE}, 503)
    try:
        salt = check_cache_salt("" if path_salt == _SENTINEL else path_salt)
        return answer_json(await run_in_thread(lambda: work(engine, salt)))
    except KeyFormatError as error:
        return answer_json({"error": str(error)}, 400)
    except HTTPException as error:
        return answer_json({"error": error.detail}, error.status_code)
    except QuotaFileError as error:
        return answer_json({"error": str(error)}, 503)


def _shown(salt: str) -> str:
    return salt or _SENTINEL


def _read_limit(text: bytes) -> float:
    """The documented checks in the documented order, or 400."""
    try:
        body: Any = json.loads(text, parse_int=float)  # which takes integers of any length
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "invalid JSON body") from error
    if not isinstance(body, dict) or "limit_gb" not in body:
        raise HTTPException(400, "body must be {'limit_gb': <float>}")
    limit = body["limit_gb"]
    if not isinstance(limit, float):
        raise HTTPException(400, "limit_gb must be numeric")
    if not math.isfinite(limit * GIB):
        raise HTTPException(400, "limit_gb must be finite")
    if limit < 0:
        raise HTTPException(400, "limit_gb must be non-negative")
    return limit
