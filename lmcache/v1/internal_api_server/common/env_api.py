"""The environment of this process, for people at a terminal."""

from __future__ import annotations

import json
import os

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from lmcache.config.redaction import redact_text
from lmcache.v1.internal_api_server.state import redacts_env

router = APIRouter(tags=["diagnostics"])


@router.get("/env", response_class=PlainTextResponse, summary="The environment variables of the process")
async def env(request: Request) -> PlainTextResponse:
    """JSON, sorted, indented. Where redaction is switched on, variables whose names look secret
    and user names and passwords inside URLs are shown as `***`; else all is shown as it is."""
    variables = dict(os.environ)
    if redacts_env(request.app):
        variables = {name: redact_text(name, value) for name, value in variables.items()}
    return PlainTextResponse(json.dumps(variables, indent=2, sort_keys=True))
