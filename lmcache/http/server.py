"""The HTTP server under the application: uvicorn, without its signals, its proxies, and its trust in polite clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE_S = 3
# How often connections that wait for their peer's goodbye are ended.
_GOODBYE_S = 0.2


class HTTPServer(uvicorn.Server):
    """Leaves the signals to the process, which ends with an exit code and not by the signal."""

    def __init__(self, app: ASGIApp, logs_access: bool, certfile: str | None, keyfile: str | None) -> None:
        super().__init__(
            uvicorn.Config(
                _CutOff(app), http="httptools" if logs_access else _SilentProtocol, ws="none", lifespan="on",
                log_config=None,
                timeout_graceful_shutdown=_GRACE_S, ssl_certfile=certfile, ssl_keyfile=keyfile,
                proxy_headers=False,  # a caller is the peer of its socket, whatever it writes
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Over TLS a closed connection waits for its peer to close it too, which an idle client never does."""
        goodbyes = asyncio.create_task(self._end_closed())
        try:
            await super().shutdown(sockets)
        finally:
            goodbyes.cancel()
            self._end(False)
            await asyncio.sleep(0)  # their protocols hear of it before the loop is closed

    async def _end_closed(self) -> None:
        while True:
            await asyncio.sleep(_GOODBYE_S)
            self._end(True)

    def _end(self, only_closing: bool) -> None:
        for connection in list(self.server_state.connections):
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None and (transport.is_closing() or not only_closing):
                transport.abort()


class _CutOff:
    """ASGI, around everything else: a call that the end of the server cuts off is answered so, without a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def seen(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not has_begun:
                await JSONResponse({"error": "the server is stopping"}, 503)(scope, receive, send)


class _SilentProtocol(HttpToolsProtocol):
    """Logs no calls. The library's own switch for that takes the logger away from every server in the process."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False
