"""One line for each call of the internal API, and what its HTTP server says of itself, at the levels of the settings.

Inference engines run HTTP servers of their own, with the same library and its global loggers: the lines of calls
have a logger of ours, and the library's level is only set where nobody else has.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmcache.config.engine.views import InternalAPISettings
from lmcache.http.guard.audit import describe_call
from lmcache.http.guard.callers import describe_peer
from lmcache.logging import is_set_up_elsewhere, set_up_logging

logger = logging.getLogger(__name__)

_SERVER_LOGGER = "uvicorn"
_TRACE = "trace"
# What a client sees that is not answered.
_NO_STATUS = 499


class AccessLogSwitch:
    """Whether calls are logged now."""

    def __init__(self, settings: InternalAPISettings) -> None:
        self.follow(settings)

    def follow(self, settings: InternalAPISettings) -> None:
        level = "DEBUG" if settings.log_level == _TRACE else settings.log_level.upper()
        self.is_on = settings.is_access_logged and logging.getLevelNamesMapping()[level] <= logging.INFO
        if not is_set_up_elsewhere(_SERVER_LOGGER):
            set_up_logging(level, _SERVER_LOGGER)


class AccessLog:
    """ASGI middleware, around everything else."""

    def __init__(self, app: ASGIApp, switch: AccessLogSwitch) -> None:
        self._app = app
        self._switch = switch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._switch.is_on:
            await self._app(scope, receive, send)
            return
        begun_s = time.perf_counter()
        status = _NO_STATUS

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            taken_ms = (time.perf_counter() - begun_s) * 1000
            logger.info("%s: %s -> %d in %.1f ms", describe_peer(scope), describe_call(scope), status, taken_ms)
