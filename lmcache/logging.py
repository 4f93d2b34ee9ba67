"""Logging of this package: one handler on `lmcache`, unless the process has set up its own."""

from __future__ import annotations

import logging
import os

ROOT_NAME = "lmcache"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVEL_VARIABLE = "LMCACHE_LOG_LEVEL"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic for type checkers alone
    """Writes to stderr while the process has no handler at its root; else that one writes."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def set_up_logging(level: str, name: str = ROOT_NAME) -> None:
    """The loggers at and below `name` write to stderr from `level` on."""
    logger = logging.getLogger(name)
    logger.setLevel(level)
    if not any(isinstance(handler, _OwnHandler) for handler in logger.handlers):
        handler = _OwnHandler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)


def is_set_up_elsewhere(name: str) -> bool:
    """Whether somebody else than `set_up_logging` has given this logger a level or a handler."""
    logger = logging.getLogger(name)
    is_ours = any(isinstance(handler, _OwnHandler) for handler in logger.handlers)
    return not is_ours and (bool(logger.handlers) or logger.level != logging.NOTSET)


def init_logger(name: str) -> logging.Logger:
    """A logger inside a process that is not ours (vLLM imports this), at the level of LMCACHE_LOG_LEVEL."""
    if not logging.getLogger(ROOT_NAME).handlers:
        level = os.environ.get(_LEVEL_VARIABLE, "INFO").upper()
        set_up_logging(level if level in LEVELS else "INFO")
    return logging.getLogger(name)
