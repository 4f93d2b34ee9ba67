"""Opening and closing backends while the engine runs."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmcache.embedded.operations import CacheOperations
from lmcache.errors import ConfigError, UnknownBackendError
from lmcache.http.errors import sendable
from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    ENGINE_ANSWERS,
    NO_ENGINE,
    answer,
    answer_after,
    described,
    find_engine,
    refusal,
)
from lmcache.v1.internal_api_server.vllm.bypass_api import not_found

router = APIRouter(tags=["backends"])

_CLOSE_ANSWERS = {**described(_400="This one cannot be closed", _404="No such backend"), **ENGINE_ANSWERS}
_RECREATE_ANSWERS = {**described(_404="No such backend"), **ENGINE_ANSWERS}
# They wait for files, sockets and threads.
_KIND = "backends"


@router.get("/backends", responses=ENGINE_ANSWERS, summary="Backends and their classes")
async def list_backends(request: Request) -> Response:
    """In the order in which they are asked."""
    engine = find_engine(request)
    if engine is None:
        return _unavailable()
    return await answer_after(request, "backends list", lambda: answer(engine.backends()), "Failed to list backends")


@router.post("/backends", responses=ENGINE_ANSWERS, summary="Open the backends that are missing")
async def create(request: Request) -> Response:
    """Those that the configuration of now asks for; the ones that are there are left alone."""
    engine = find_engine(request)
    if engine is None:
        return _unavailable()

    def change() -> Response:
        return answer({"status": "success", "created": engine.create_backends(), "backends": engine.backends()})

    return await answer_after(request, _KIND, change, "Failed to create backends")


@router.delete("/backends/{name}", responses=_CLOSE_ANSWERS, summary="Close a backend")
async def close(request: Request, name: str) -> Response:
    """What it holds on disk or elsewhere stays there. L1 itself cannot be closed."""
    engine = find_engine(request)
    if engine is None:
        return _unavailable()

    def change() -> Response:
        try:
            engine.close_backend(name)
        except UnknownBackendError:
            return _not_found(name, engine)
        except ConfigError as error:
            return refusal(400, "Failed to close backend", error)
        message = sendable(f"Backend {name} closed")
        return answer({"status": "success", "message": message, "backends": engine.backends()})

    return await answer_after(request, _KIND, change, "Failed to close backend")


@router.post("/backends/{name}/recreate", responses=_RECREATE_ANSWERS, summary="Close a backend and open it again")
async def recreate(request: Request, name: str) -> Response:
    """By the configuration of now."""
    engine = find_engine(request)
    if engine is None:
        return _unavailable()

    def change() -> Response:
        try:
            recreated = engine.recreate_backend(name)
        except UnknownBackendError:
            return _not_found(name, engine)
        return answer({"status": "success", "recreated": recreated, "backends": engine.backends()})

    return await answer_after(request, _KIND, change, "Failed to recreate backend")


def _not_found(name: str, engine: CacheOperations) -> Response:
    body = {"status": "not_found", "message": sendable(not_found(name, engine)), "backends": engine.backends()}
    return answer(body, 404)


def _unavailable() -> Response:
    return refusal(503, "/backends API is unavailable", NO_ENGINE)
