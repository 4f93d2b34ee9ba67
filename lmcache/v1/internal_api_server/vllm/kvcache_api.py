"""The engine's KV pages: what they are, what they hold right now, and which slots are stored and retrieved."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.core.block_ranges import list_runs, parse_ids
from lmcache.embedded.kv_tensors import KVTensors
from lmcache.embedded.manager import EmbeddedManager
from lmcache.embedded.slot_checksums import check_slots, slot_checksums
from lmcache.errors import BlockRangeError
from lmcache.v1.internal_api_server.vllm.adapter_calls import (
    NO_ADAPTER,
    answer,
    answer_after,
    described,
    find_adapter,
    refusal,
)

router = APIRouter(tags=["KV pages"])

_ANSWERS = described(_500="It failed; the message says why", _503="There is no engine here")
_NO_PAGES = described(_404="There are no KV pages here, or not yet")
_CHECK_ANSWERS = {**described(_400="A parameter is missing, malformed or out of range"), **_NO_PAGES, **_ANSWERS}
_RECORD_ANSWERS = {**described(_400="`enabled` is neither `true` nor `false`"), **_ANSWERS}
_FLAGS = {"true": True, "false": False}


@router.get("/cache/kvcache/check", responses=_CHECK_ANSWERS, summary="MD5s of what lies at slots")
async def check(
    request: Request,
    slot_mapping: Annotated[str | None, Query(description="Required. Slots and ranges, e.g. `0,[2,5],8`")] = None,
    chunk_size: Annotated[int | None, Query(description="Required. Slots for each MD5")] = None,
    layerwise: Annotated[bool, Query(description="One list of MD5s for each layer")] = False,
) -> Response:
    """Read while the engine may write. The last chunk may be short."""
    adapter = find_adapter(request)
    if adapter is None:
        return _unavailable()
    if not slot_mapping:
        return refusal(400, "Missing parameters", "slot_mapping parameter is required")
    try:
        ranges = parse_ids(slot_mapping)
    except BlockRangeError as error:
        expected = "slot_mapping must be comma-separated integers or ranges like [start,end]"
        return refusal(400, "Invalid slot_mapping format", f"{expected}: {error}")

    def work() -> Response:
        tensors = adapter.kv_tensors
        if tensors is None or not tensors.layers:
            return _no_pages()
        return _checked(tensors, ranges, chunk_size, layerwise)

    return await answer_after(request, "kvcache check", work, "Failed to compute checksums")


@router.post("/cache/kvcache/record_slot", responses=_RECORD_ANSWERS, summary="Log the slots of stores and retrieves")
async def record_slot(
    request: Request,
    enabled: Annotated[str | None, Query(description="`true` or `false`; only asks without it")] = None,
) -> Response:
    """At INFO, one line for each request that is stored or retrieved."""
    adapter = find_adapter(request)
    if adapter is None:
        return _unavailable()
    if enabled is not None:
        if enabled.lower() not in _FLAGS:
            return refusal(400, "Invalid parameter", "enabled must be 'true' or 'false'")
        adapter.logs_slots = _FLAGS[enabled.lower()]
    return answer({"status": "success", "kvcache_check_log_enabled": adapter.logs_slots})


@router.get("/cache/kvcache/info", responses={**_NO_PAGES, **_ANSWERS}, summary="Layers of the KV pages")
async def info(request: Request) -> Response:
    """By the names under which the engine registered them."""
    adapter = find_adapter(request)
    if adapter is None:
        return _unavailable()
    return await answer_after(request, "kvcache info", lambda: _info(adapter), "Failed to get kvcache info")


def _checked(tensors: KVTensors, ranges: list[range], chunk_size: int | None, layerwise: bool) -> Response:
    """The documented checks in the documented order."""
    try:
        slots = check_slots(tensors, ranges)
    except BlockRangeError as error:
        return refusal(400, "Invalid slot indices", error)
    if chunk_size is None or chunk_size <= 0:
        return refusal(400, "Invalid chunk_size", "chunk_size must be a positive integer")
    try:
        found = slot_checksums(tensors, slots, chunk_size)
    except BlockRangeError as error:
        return refusal(400, "Invalid chunk_size", error)
    return answer({
        "status": "success",
        "slot_mapping_ranges": list_runs(slots),
        "chunk_size": chunk_size,
        "num_chunks": found.num_chunks,
        "chunk_checksums": dict(found.by_layer) if layerwise else found.over_layers(),
        "layerwise": layerwise,
    })  # fmt: skip


def _info(adapter: EmbeddedManager) -> Response:
    caches = adapter.kv_caches
    if not caches:
        return _no_pages()
    layers = {
        name: {"shape": list(tensor.shape), "dtype": tensor.dtype, "device": tensor.device}
        for name, tensor in caches.items()
    }
    return answer({"status": "success", "num_layers": len(layers), "layers": layers})


def _no_pages() -> Response:
    return refusal(404, "kv_caches not available", "kv_caches is empty or not initialized")


def _unavailable() -> Response:
    return refusal(503, "LMCache adapter unavailable", NO_ADAPTER)
