"""Opening and closing backends while the engine runs."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.errors import ConfigError, UnknownBackendError
from lmcache.http.errors import sendable
from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    ENGINE_ANSWERS,
    answer,
    answer_of_engine,
    described,
    refusal,
)
from lmcache.v1.internal_api_server.vllm.bypass_api import not_found

router = APIRouter(tags=["backends"])

_CLOSE_ANSWERS = {**described(_400="This one cannot be closed", _404="No such backend"), **ENGINE_ANSWERS}
_RECREATE_ANSWERS = {**described(_404="No such backend"), **ENGINE_ANSWERS}
# They wait for files, sockets and threads.
_KIND = "backends"
_UNAVAILABLE = "/backends API is unavailable"


@router.get("/backends", responses=ENGINE_ANSWERS, summary="Backends and their classes")
async def list_backends(request: Request) -> Response:
    """In the order in which they are asked."""
    return await answer_of_engine(
        request, "backends list", lambda engine: answer(engine.backends()), _UNAVAILABLE, "Failed to list backends"
    )


@router.post("/backends", responses=ENGINE_ANSWERS, summary="Open the backends that are missing")
async def create(request: Request) -> Response:
    """Those that the configuration of now asks for; the ones that are there are left alone."""

    def change(engine: CacheOperations) -> Response:
        return answer({"status": "success", "created": engine.create_backends(), "backends": engine.backends()})

    return await answer_of_engine(request, _KIND, change, _UNAVAILABLE, "Failed to create backends")


@router.delete("/backends/{name}", responses=_CLOSE_ANSWERS, summary="Close a backend")
async def close(request: Request, name: str) -> Response:
    """What it holds on disk or elsewhere stays there. L1 itself cannot be closed."""

    def change(engine: CacheOperations) -> Response:
        try:
            engine.close_backend(name)
        except UnknownBackendError:
            return _not_found(name, engine)
        except ConfigError as error:
            return refusal(400, "Failed to close backend", error)
        message = sendable(f"Backend {name} closed")
        return answer({"status": "success", "message": message, "backends": engine.backends()})

    return await answer_of_engine(request, _KIND, change, _UNAVAILABLE, "Failed to close backend")


@router.post("/backends/{name}/recreate", responses=_RECREATE_ANSWERS, summary="Close a backend and open it again")
async def recreate(request: Request, name: str) -> Response:
    """By the configuration of now."""

    def change(engine: CacheOperations) -> Response:
        try:
            recreated = engine.recreate_backend(name)
        except UnknownBackendError:
            return _not_found(name, engine)
        return answer({"status": "success", "recreated": recreated, "backends": engine.backends()})

    return await answer_of_engine(request, _KIND, change, _UNAVAILABLE, "Failed to recreate backend")


def _not_found(name: str, engine: CacheOperations) -> Response:
    body = {"status": "not_found", "message": sendable(not_found(name, engine)), "backends": engine.backends()}
    return answer(body, 404)
