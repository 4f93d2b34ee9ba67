"""Which lookup client and server a configuration asks for. The one place where they are made."""

from __future__ import annotations

import time
from collections.abc import Callable

from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.base import LookupClient, LookupServer, LookupTarget
from lmcache.embedded.lookup.client import LMCacheLookupClient
from lmcache.embedded.lookup.server import LMCacheLookupServer


class LookupClientFactory:
    """For one inference engine of `world_size` ranks. `timeout_ms` is asked before each lookup."""

    def __init__(
        self,
        address: LookupAddress,
        world_size: int,
        timeout_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._world_size = world_size
        self._timeout_ms = timeout_ms
        self._clock = clock

    def create_lookup_client(self) -> LookupClient:
        """Raises ConfigError."""
        urls = [self._address.url(rank) for rank in range(self._world_size)]
        return LMCacheLookupClient(urls, self._timeout_ms, self._clock)

    def create_lookup_server(self, rank: int, target: LookupTarget) -> LookupServer:
        """Not started yet. Raises ConfigError."""
        self._address.make_folder()
        self._address.sweep()
        return LMCacheLookupServer(self._address.path(rank), target)
