"""Levels of Python's loggers, read and set at run time."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response

router = APIRouter(tags=["diagnostics"])

_TITLE = "=== Loggers and Levels ==="
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Levels, or null", "content": {"text/plain": {}, "application/json": {}}},
    400: {"description": "No such level", "content": {"text/plain": {}}},
}


@router.get("/loglevel", response_class=PlainTextResponse, responses=_ANSWERS, summary="Read or set log levels")
async def loglevel(
    logger_name: Annotated[str, Query(description="The logger to read or set; all are listed without it")] = "",
    level: Annotated[str, Query(description="DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case")] = "",
) -> Response:
    """Without parameters: every logger with the level in effect for it. With `logger_name`: that
    one. With `level` too: that logger and its handlers are set to it. With `level` alone: null."""
    if not logger_name:
        return JSONResponse(None) if level else PlainTextResponse(_all_levels())
    if not level:
        return PlainTextResponse(_line(logger_name))
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        return PlainTextResponse(f"Invalid log level: {level}", 400)
    _set_level(logging.getLogger(logger_name), number)
    return PlainTextResponse(f"Set {logger_name} level to {level.upper()} (including all handlers)")


def _set_level(logger: logging.Logger, level: int) -> None:
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)


def _all_levels() -> str:
    known = sorted(logging.root.manager.loggerDict.copy().items())
    names = [name for name, logger in known if isinstance(logger, logging.Logger)]
    return "\n".join([_TITLE, *(_line(name) for name in names)])


def _line(name: str) -> str:
    return f"{name}: {logging.getLevelName(_existing(name).getEffectiveLevel())}"


def _existing(name: str) -> logging.Logger:
    """The logger of this name or the nearest above it: to ask for a level must not make loggers."""
    while name and name != logging.root.name:
        logger = logging.root.manager.loggerDict.get(name)
        if isinstance(logger, logging.Logger):
            return logger
        name = name.rpartition(".")[0]
    return logging.root
