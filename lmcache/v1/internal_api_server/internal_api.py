"""The internal API as the configuration of now wants it: served or not, and adjusted while it is.

Light to import: the HTTP server is only loaded by those who serve.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from lmcache.config.engine import Change
from lmcache.config.engine.views import InternalAPISettings, internal_api_settings
from lmcache.embedded.manager import EmbeddedManager
from lmcache.errors import LMCacheError

if TYPE_CHECKING:
    from lmcache.v1.internal_api_server.api_server import InternalAPIServer

logger = logging.getLogger(__name__)

_KEYS = (
    "internal_api_server_enabled", "internal_api_server_include_index_list", "script_allowed_imports",
    "internal_api_server_script_timeout_seconds", "extra_config",
)  # fmt: skip
# For the call that switched the API off, and for those that it has met.
_SWITCHED_OFF_GRACE_S = 30.0
_END_S = 60.0


class InternalAPI:
    """Owned by one half of an engine. `index` as for `InternalAPIServer`.

    A change is noticed by a thread of its own, since the call that made it may be one of the API itself, which is
    still to be answered.
    """

    def __init__(self, manager: EmbeddedManager, index: int) -> None:
        self._manager = manager
        self._index = index
        # Changed by `start`, then by the thread, then by `stop`.
        self._server: InternalAPIServer | None = None
        # One after the other: an older look at the settings is not followed after a newer one.
        self._following = threading.Lock()
        self._changed = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="lmcache-internal-api", daemon=True)
        self._unsubscribe = manager.config.subscribe(_KEYS, self._notice)

    def start(self) -> None:
        """Serve, if the configuration says so, and follow its changes. Raises LMCacheError, of which ConfigError
        names the key at fault; there is nothing to stop then."""
        try:
            self._adjust(self._settings())
        except LMCacheError:
            self._unsubscribe()
            raise
        self._thread.start()

    def stop(self) -> None:
        """May be called again."""
        self._unsubscribe()
        self._is_stopping = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def is_serving(self) -> bool:
        server = self._server
        return server is not None and server.is_serving

    def _notice(self, change: Change) -> None:
        """What a server takes over while it serves is in force when the change is answered."""
        self._follow()
        self._changed.set()

    def _follow(self) -> None:
        with self._following:
            server, settings = self._server, self._settings()
            if server is not None and settings.serves(self._index):
                server.follow(settings)

    def _run(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._is_stopping:
                return
            try:
                self._adjust(self._settings())
            except LMCacheError as error:
                logger.warning("the internal API is not served: %s", error)
            except Exception:  # the root of a thread: log, go on
                logger.exception("the internal API cannot follow its settings")

    def _adjust(self, settings: InternalAPISettings) -> None:
        is_wanted = settings.serves(self._index)
        if self._server is None:
            if is_wanted:
                self._open(settings)
        elif is_wanted:
            self._follow()
        else:
            self._server.stop(_SWITCHED_OFF_GRACE_S)
            self._server = None

    def _open(self, settings: InternalAPISettings) -> None:
        from lmcache.v1.internal_api_server.api_server import InternalAPIServer

        server = InternalAPIServer(settings, self._index, self._manager)
        self._server = server  # before anybody can call it: what the first call changes is followed, too
        try:
            server.start()
        except LMCacheError:
            self._server = None
            raise

    def _settings(self) -> InternalAPISettings:
        return internal_api_settings(self._manager.config)
