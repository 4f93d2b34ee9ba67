"""A Python script that an operator uploads, run inside this process."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from lmcache.v1.internal_api_server.scripts import ScriptStatus
from lmcache.v1.internal_api_server.state import script_runner

router = APIRouter(tags=["diagnostics"])

UPLOAD_BYTES_MAX = 1 << 20
# A client that is answered while it still sends may never read the answer: this much is read and dropped.
_DROPPED_BYTES_MAX = 16 << 20

_UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["script"],
                "properties": {"script": {"type": "string", "format": "binary", "description": "The script, a file"}},
            }
        }
    },
}
_TEXT: dict[str, object] = {"text/plain": {}}
_CODE_OF = {ScriptStatus.DONE: 200, ScriptStatus.FAILED: 500, ScriptStatus.REFUSED: 503}


@router.post(
    "/run_script",
    response_class=PlainTextResponse,
    openapi_extra={"requestBody": _UPLOAD},
    responses={
        400: {"description": "No file in the field `script`", "content": _TEXT},
        413: {"description": "The upload is too large", "content": _TEXT},
        500: {"description": "The script failed or took too long", "content": _TEXT},
        503: {"description": "Too many scripts are running", "content": _TEXT},
    },
    summary="Run an uploaded Python script in the process",
)
async def run_script(request: Request) -> PlainTextResponse:
    """The script has the builtins print, str, int, float, list, dict, tuple, set and an `__import__`
    for the allowed modules, and the application as `app`. What it assigns to `result` is the
    answer. This is no sandbox: whoever may call it can do all that the process can."""
    body = await _body_of(request)
    if body is None:
        return PlainTextResponse(f"The upload must be at most {UPLOAD_BYTES_MAX} bytes", 413)
    try:
        script = await _script_in(request, body)
    except HTTPException as error:
        return PlainTextResponse(f"No script file provided: {error.detail}", 400)
    if script is None:
        return PlainTextResponse("No script file provided", 400)
    result = await script_runner(request.app).run(script, request.app)
    text = f"Error executing script: {result.text}" if result.status is ScriptStatus.FAILED else result.text
    return PlainTextResponse(text, _CODE_OF[result.status])


async def _body_of(request: Request) -> bytes | None:
    """None if it is larger than allowed."""
    body = bytearray()
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= UPLOAD_BYTES_MAX:
            body += part
        elif num_bytes > _DROPPED_BYTES_MAX:
            break
    return bytes(body) if num_bytes <= UPLOAD_BYTES_MAX else None


async def _script_in(request: Request, body: bytes) -> bytes | None:
    """The file in the field `script`; None if there is none. HTTPException: the form is malformed."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, receive).form() as form:
        script = form.get("script")
        return await script.read() if isinstance(script, UploadFile) else None
