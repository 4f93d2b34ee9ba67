"""What is known of the inference engine around us."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lmcache.config.json_safe import make_json_safe
from lmcache.v1.internal_api_server.vllm.adapter_calls import adapter_of, answer, answer_after, described

router = APIRouter(tags=["version"])

_ANSWERS = described(_500="It cannot be told; the message says why")


@router.get("/inference_info", responses=_ANSWERS, summary="Versions, model and cache of the inference engine")
async def inference_info(
    request: Request, format: Annotated[str | None, Query(description="Reserved; has no effect")] = None
) -> Response:
    """What this version of the engine does not have is null. `{}` outside of an inference engine."""
    adapter = adapter_of(request)
    return await answer_after(
        request, "inference", lambda: answer(make_json_safe(adapter.get_inference_info())),
        "Failed to get inference info",
    )  # fmt: skip


@router.get("/inference_version", responses=_ANSWERS, summary="Version of the inference engine")
async def inference_version(request: Request) -> Response:
    """`{}` outside of an inference engine."""
    adapter = adapter_of(request)
    return await answer_after(
        request, "inference", lambda: answer(make_json_safe(adapter.get_inference_version())),
        "Failed to get inference version",
    )  # fmt: skip
