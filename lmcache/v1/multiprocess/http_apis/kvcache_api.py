"""MD5s of the blocks an engine holds right now, for integrity checks of a store and a retrieve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StrictBool, StrictInt

from lmcache.core.block_ranges import parse_block_ids
from lmcache.engine.checksums import BlockChecksums, ChecksumRequest
from lmcache.errors import BlockRangeError, InstanceError, NoInstanceError, NoKVError, UnsupportedFormatError

router = APIRouter(tags=["cache control"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "`block_ids` or `chunk_size` missing, malformed or outside the cache"},
    404: {"description": "No such instance, or it has no KV tensors"},
    501: {"description": "This engine, or its KV format, has no blocks to ask for"},
    503: {"description": "The engine is not there yet, or the instance does not answer"},
}
_STATUS_OF = {
    BlockRangeError: 400,
    NoInstanceError: 404,
    NoKVError: 404,
    UnsupportedFormatError: 501,
    InstanceError: 503,
}
# Checks wait for other processes: they must not use up the threads that the other endpoints work in.
_CHECKS_AT_ONCE_MAX = 16
_limiter = CapacityLimiter(_CHECKS_AT_ONCE_MAX)

ReadBlockIds = Callable[[], Sequence[range]]


class ChecksumBody(BaseModel):
    """`block_ids` in the order they are hashed in, duplicates kept; `chunk_size` in blocks."""

    block_ids: list[StrictInt] | None = Field(None, fail_fast=True)
    chunk_size: StrictInt | None = None
    instance_id: StrictInt = 0
    layerwise: StrictBool = Field(False, description="One list of MD5s for each layer")


@router.get("/kvcache/check", summary="MD5s of an engine's blocks", responses=_RESPONSES)
async def check_kvcache(
    request: Request,
    block_ids: Annotated[str | None, Query(description="Required. Ids and ranges, e.g. `0,[2,5],8`")] = None,
    chunk_size: Annotated[int | None, Query(description="Required. Blocks for each MD5")] = None,
    instance_id: Annotated[int, Query(description="As listed by /status")] = 0,
    layerwise: Annotated[bool, Query(description="One list of MD5s for each layer")] = False,
) -> JSONResponse:
    """The last chunk may be short. Errors come as `{"error": ...}`."""
    read = (lambda: parse_block_ids(block_ids)) if block_ids else None
    try:
        return await _check(request, instance_id, read, chunk_size, layerwise)
    except HTTPException as error:
        return JSONResponse({"error": error.detail}, error.status_code)


@router.post("/cache/checksums", summary="MD5s of an engine's blocks", responses=_RESPONSES)
async def checksum_blocks(request: Request, body: ChecksumBody) -> JSONResponse:
    """The later name of /kvcache/check. Errors come as `{"detail": ...}`."""
    ids = body.block_ids
    read = (lambda: [range(block_id, block_id + 1) for block_id in ids]) if ids else None
    return await _check(request, body.instance_id, read, body.chunk_size, body.layerwise)


async def _check(
    request: Request, instance_id: int, read_ids: ReadBlockIds | None, chunk_size: int | None, layerwise: bool
) -> JSONResponse:
    """The documented checks in the documented order."""
    engine = request.app.state.engine
    if engine is None:
        raise HTTPException(503, "engine not initialized")
    contexts = getattr(engine, "cache_contexts", None)
    if contexts is None:
        raise HTTPException(501, "checksum not supported for this engine type")
    if instance_id not in contexts:
        raise HTTPException(404, f"instance_id {instance_id} not registered")
    if read_ids is None:
        raise HTTPException(400, "block_ids is required")

    def ask() -> JSONResponse:
        ranges = read_ids()
        if chunk_size is None or chunk_size <= 0:
            raise HTTPException(400, "chunk_size must be positive")
        checksums = engine.block_checksums(instance_id, ChecksumRequest(ranges, chunk_size, layerwise))
        return JSONResponse(_body(checksums, chunk_size, layerwise))

    try:
        return await anyio.to_thread.run_sync(ask, limiter=_limiter)
    except tuple(_STATUS_OF) as error:
        raise HTTPException(_STATUS_OF[type(error)], str(error)) from error


def _body(checksums: BlockChecksums, chunk_size: int, layerwise: bool) -> dict[str, object]:
    rows = checksums.rows
    by_layer = {f"layer_{index}": row for index, row in zip(checksums.layer_indices, rows, strict=False)}
    return {
        "status": "success",
        "chunk_size": chunk_size,
        "num_chunks": checksums.num_chunks,
        "chunk_checksums": by_layer if layerwise else rows[0],
        "layerwise": layerwise,
        "block_id_ranges": checksums.block_id_ranges,
    }
