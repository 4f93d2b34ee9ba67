"""The internal API of one half of an inference engine, served by a thread of its process."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import uvloop

from lmcache.config.checks import is_loopback
from lmcache.config.engine.views import InternalAPISettings
from lmcache.embedded.manager import SCHEDULER, EmbeddedManager
from lmcache.http.listening import UnixListener, http_url, listen
from lmcache.http.server import HTTPServer
from lmcache.v1.internal_api_server.app import InternalApp, make_internal_app

logger = logging.getLogger(__name__)

THREAD_NAME = "api-server-thread"
_HOST_KEY = "internal_api_server_host"
_PORT_KEY = "internal_api_server_port_start"
_PATH_KEY = "internal_api_server_socket_path_prefix"
# For what is being answered when it stops, and for the thread to end after that.
GRACE_S = 3.0
_END_S = 5.0


class InternalAPIServer:
    """Starts once. `index`: 0 for the scheduler, N + 1 for worker N. Any thread may start and stop it."""

    def __init__(self, settings: InternalAPISettings, index: int, manager: EmbeddedManager) -> None:
        """Listens nowhere yet. Raises ConfigError, EndpointError."""
        self._settings = settings
        self._index = index
        self._manager = manager
        self._app: InternalApp = make_internal_app(settings, manager)
        self._http = HTTPServer(self._app.app, False, settings.ssl_certfile, settings.ssl_keyfile)
        self._unix: UnixListener | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """When it returns, clients can connect. Raises ConfigError, with the key at fault."""
        assert self._thread is None, "a server starts once"
        listener = self._listen()
        self._thread = threading.Thread(target=self._run, args=(listener,), name=THREAD_NAME, daemon=True)
        self._thread.start()
        self._tell(listener)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """What is being answered is answered, for at most `grace_s`. May be called again, and without a start."""
        self._http.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._http.should_exit = True
        if self._thread is not None:
            self._thread.join(grace_s + _END_S)
            if self._thread.is_alive():
                logger.warning("the internal API has not ended within %g s; it is left behind", grace_s + _END_S)
        if self._unix is not None:
            self._unix.close()

    def follow(self, settings: InternalAPISettings) -> None:
        """Take over what may change while it is served."""
        self._app.follow(settings)

    @property
    def is_serving(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _listen(self) -> socket.socket:
        settings = self._settings
        path = settings.socket_path(self._index)
        if path is None:
            return listen(settings.host, settings.port_start, _HOST_KEY, _PORT_KEY, self._index)
        self._unix = UnixListener(path, _PATH_KEY)
        return self._unix.socket

    def _run(self, listener: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._http.serve(sockets=[listener]))
        except Exception:  # the root of a thread: log; the engine goes on
            logger.exception("the internal API has ended")
        finally:
            listener.close()

    def _tell(self, listener: socket.socket) -> None:
        settings, metadata = self._settings, self._manager.lmcache_engine_metadata
        half = SCHEDULER if metadata.role == SCHEDULER else f"worker{metadata.worker_id}"
        name = f"{self._manager.config.lmcache_instance_id}_{half}"
        if self._unix is not None:
            logger.info("internal API of %s: unix socket %s", name, self._unix.path)
            return
        url = http_url(listener, "http" if settings.ssl_certfile is None else "https")
        logger.info("internal API of %s: %s", name, url)
        if not is_loopback(listener.getsockname()[0]) and settings.auth_token_file and settings.ssl_certfile is None:
            logger.warning("%s takes tokens unencrypted: set internal_api_server_ssl_certfile", url)
