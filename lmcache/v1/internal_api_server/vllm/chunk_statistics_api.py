"""How often the same chunks are asked for: switching the count on and off, and reading it."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response

from lmcache.config.json_safe import make_json_safe
from lmcache.embedded.manager import ChunkStatistics
from lmcache.v1.internal_api_server.vllm.adapter_calls import adapter_of, answer, answer_after, described, refusal

router = APIRouter(tags=["chunk statistics"])

_ANSWERS = described(
    _400="The lookup client does not count chunks", _500="It failed; the message says why",
    _503="There is no lookup client here, or none now",
)  # fmt: skip


@router.post("/chunk_statistics/start", responses=_ANSWERS, summary="Begin to count chunks")
async def start(request: Request) -> Response:
    """What was counted before stays."""
    return await _answer(request, lambda statistics: _done(statistics.start, "Started"), "start")


@router.post("/chunk_statistics/stop", responses=_ANSWERS, summary="End counting chunks")
async def stop(request: Request) -> Response:
    """What was counted can still be read."""
    return await _answer(request, lambda statistics: _done(statistics.stop, "Stopped"), "stop")


@router.post("/chunk_statistics/reset", responses=_ANSWERS, summary="Forget the chunks counted so far")
async def reset(request: Request) -> Response:
    """Counting goes on where it is on."""
    return await _answer(request, lambda statistics: _done(statistics.reset, "Reset"), "reset")


@router.get("/chunk_statistics/status", responses=_ANSWERS, summary="Chunks counted so far")
async def status(request: Request) -> Response:
    """With what the count itself costs, and when it ends by itself."""
    return await _answer(request, lambda statistics: answer(make_json_safe(statistics.status())), "get status")


async def _answer(request: Request, work: Callable[[ChunkStatistics], Response], verb: str) -> Response:
    client = adapter_of(request).lookup_client
    if client is None:
        return refusal(503, "API unavailable", "Lookup client not configured.")
    if not isinstance(client, ChunkStatistics):
        return refusal(400, "Not available", "Client does not support statistics.")
    return await answer_after(request, f"chunk statistics {verb}", lambda: work(client), f"Failed to {verb}")


def _done(change: Callable[[], None], word: str) -> Response:
    change()
    return answer({"status": "success", "message": word})
