"""Bringing the files of a remote tier into L1 ahead of need."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from lmcache.errors import ConfigError
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

router = APIRouter(tags=["cache-management"])

_ANSWERS = {**described(_400="The configuration cannot be used"), **ENGINE_ANSWERS}
_FAILURE = "Failed to load chunks from FSConnector"
_COUNT_MAX = 1 << 62


class LoadRequest(BaseModel):
    """`max_failed_keys`: how many are listed in the answer."""

    config_path: str
    max_chunks: Annotated[int, Field(ge=0, le=_COUNT_MAX)] | None = None
    max_failed_keys: Annotated[int, Field(ge=0, le=_COUNT_MAX)] = 10


@router.post("/cache/load-fs-chunks", responses=_ANSWERS, summary="Load the files of a tier into L1")
async def load_fs_chunks(request: Request, wanted: LoadRequest) -> Response:
    """Those of the remote tier that the configuration file at `config_path`, on this host, describes.
    `total_files` counts also what `max_chunks` left out."""
    engine = find_engine(request)
    if engine is None:
        return refusal(503, "/cache/load-fs-chunks API is unavailable", NO_ENGINE)
    path = sendable(wanted.config_path)

    def load() -> Response:
        try:
            loaded = engine.load_fs_chunks(wanted.config_path, wanted.max_chunks)
        except ConfigError as error:
            return refusal(400, _FAILURE, error, config_path=path)
        return answer({
            "status": "success", "loaded_chunks": loaded.num_loaded, "total_files": loaded.total_files,
            "failed_keys": list(loaded.failed_keys[: wanted.max_failed_keys]), "config_path": path,
        })  # fmt: skip

    return await answer_after(request, "fs chunks", load, _FAILURE, lambda error: {"config_path": path})
