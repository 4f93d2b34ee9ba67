"""Opening the engine behind the HTTP server's back, in a thread of its own, and closing it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from fastapi import FastAPI

from lmcache.engine.cache_server import MPCacheServer
from lmcache.errors import LMCacheError
from lmcache.transport.server import ServerLoop

logger = logging.getLogger(__name__)


class EngineServer(Protocol):
    """An engine with its request loop; `LocalServer` is the one."""

    @property
    def engine(self) -> MPCacheServer: ...
    @property
    def loop(self) -> ServerLoop: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class EngineOpener:
    """An `EngineLifecycle`. `open_server`, `on_open` and `on_failure` run in the opener's thread.

    An error of ours is a set-up that cannot work: `failure` keeps it and `on_failure` is told.
    Anything else is logged, and the process goes on answering that it has no engine.
    """

    def __init__(
        self,
        open_server: Callable[[], EngineServer],
        on_open: Callable[[EngineServer], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._open_server = open_server
        self._on_open = on_open
        self._on_failure = on_failure
        self._server: EngineServer | None = None
        self._thread: threading.Thread | None = None
        self._app: FastAPI | None = None
        self.failure: LMCacheError | None = None

    def start(self, app: FastAPI) -> None:
        self._app = app
        self._thread = threading.Thread(target=self._open, args=(app,), name="lmcache-open-engine", daemon=True)
        self._thread.start()

    def _open(self, app: FastAPI) -> None:
        try:
            server = self._open_server()
            self._server = server
            server.start()
            app.state.request_server = server.loop
            app.state.engine = server.engine
            self._on_open(server)
        except LMCacheError as error:
            self.failure = error
            self._on_failure()
        except Exception:  # the root of a thread: log, go on without an engine
            logger.exception("the engine failed to open; requests that need it are answered with 503")

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._app is not None:
            self._app.state.engine = None
        if self._server is not None:
            self._server.stop()
            self._server = None
