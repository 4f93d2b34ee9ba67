"""The framework's answer 422, made fit to be sent whatever the client wrote.

It repeats the input it complains of, and JSON as Python reads it holds what JSON cannot say
(NaN, half a surrogate pair) or what is too deep or too long to be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

_DEPTH_MAX = 20
_ITEMS_MAX = 100
_CHARACTERS_MAX = 1000
_CUT = "..."


def install_errors(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _answer)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": [sendable(item) for item in error.errors()[:_ITEMS_MAX]]}, 422)


def sendable(value: Any, depth: int = 0) -> Any:
    """The value as JSON can say it; where it is too deep or too long, its beginning."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case _ if depth > _DEPTH_MAX:
            return _CUT
        case Mapping():
            return {_text(str(key)): sendable(value[key], depth + 1) for key in list(value)[:_ITEMS_MAX]}
        case list() | tuple():
            return [sendable(item, depth + 1) for item in value[:_ITEMS_MAX]]
        case bytes():
            return _text(value[: _CHARACTERS_MAX + 1].decode("utf-8", "replace"))
        case _:
            return _text(str(value))


def _text(text: str) -> str:
    if len(text) > _CHARACTERS_MAX:
        text = text[:_CHARACTERS_MAX] + _CUT
    return text.encode("utf-8", "replace").decode("utf-8")
