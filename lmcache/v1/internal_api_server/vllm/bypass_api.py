"""Taking single backends out of lookups, loads and stores for a while, and back in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.errors import UnknownBackendError
from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    ENGINE_ANSWERS,
    answer,
    answer_of_engine,
    described,
    refusal,
)

router = APIRouter(tags=["bypass"])

_UNAVAILABLE = "Bypass API is unavailable"

BackendName = Annotated[str | None, Query(description="Required. As listed by /bypass/list")]
_ANSWERS = {**described(_400="The backend is missing or unknown"), **ENGINE_ANSWERS}


@router.get("/bypass/list", responses=ENGINE_ANSWERS, summary="Backends, and those that are bypassed")
async def list_backends(request: Request) -> Response:
    """In the order in which they are asked; the bypassed ones by name."""

    def ask(engine: CacheOperations) -> Response:
        return answer({
            "status": "success", "bypassed_backends": engine.bypassed(), "all_backends": list(engine.backends()),
        })  # fmt: skip

    return await answer_of_engine(request, "bypass list", ask, _UNAVAILABLE, "Failed to list bypassed backends")


@router.put("/bypass/add", responses=_ANSWERS, summary="Bypass a backend")
async def add(request: Request, backend_name: BackendName = None) -> Response:
    """Nothing looks there, loads from there or stores there until it is taken back in."""
    return await _set(request, backend_name, True)


@router.put("/bypass/remove", responses=_ANSWERS, summary="Take a backend back in")
async def remove(request: Request, backend_name: BackendName = None) -> Response:
    """What it holds can be found again at once."""
    return await _set(request, backend_name, False)


async def _set(request: Request, name: str | None, is_bypassed: bool) -> Response:
    def change(engine: CacheOperations) -> Response:
        if not name:
            return refusal(400, "Missing parameter", "backend_name is required")
        try:
            was_bypassed = engine.bypass(name, is_bypassed)
        except UnknownBackendError:
            return refusal(400, "Unknown backend", not_found(name, engine))
        return answer({
            "status": "success", "backend_name": name, "bypassed": is_bypassed,
            "was_already_bypassed" if is_bypassed else "was_bypassed": was_bypassed,
            "bypassed_backends": engine.bypassed(),
        })  # fmt: skip

    return await answer_of_engine(
        request, "bypass", change, _UNAVAILABLE, f"Failed to {'add' if is_bypassed else 'remove'} bypass backend"
    )


def not_found(name: str, engine: CacheOperations) -> str:
    return f"Backend '{name}' not found. Available: {list(engine.backends())}"
