"""Saying that an engine is served without cache, in one line."""

from __future__ import annotations

import functools

from lmcache.logging import init_logger

logger = init_logger(__name__)

# More engines than one process ever makes.
_LINES_MAX = 1024


@functools.lru_cache(maxsize=_LINES_MAX)
def say_declined(engine_id: str | None, reason: str) -> None:
    """Once a process and engine: both halves of a connector may live in one, and come to the same reason."""
    logger.warning("lmcache declines to cache for this engine: %s", reason)
