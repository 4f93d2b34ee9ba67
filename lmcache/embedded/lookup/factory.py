"""Which lookup client and server the configuration of this moment asks for. The one place where they are made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.async_client import LMCacheAsyncLookupClient
from lmcache.embedded.lookup.async_server import LMCacheAsyncLookupServer
from lmcache.embedded.lookup.base import LookupClient, LookupServer, LookupTarget, TierLookups
from lmcache.embedded.lookup.bypass_client import LMCacheBypassLookupClient
from lmcache.embedded.lookup.client import LMCacheLookupClient
from lmcache.embedded.lookup.hit_limit_client import HitLimitLookupClient
from lmcache.embedded.lookup.introduction_server import IntroductionServer
from lmcache.embedded.lookup.server import LMCacheLookupServer
from lmcache.errors import ConfigError, LMCacheError

_RANKS_KEY = "lookup_server_worker_ids"


@dataclass(frozen=True, slots=True)
class MadeClient:
    """`engine`: the scheduler's own, where the client looks into one; closed with the client."""

    client: LookupClient
    engine: TierLookups | None = None


class LookupClientFactory:
    """For one inference engine of `world_size` ranks. Settings are read whenever something is made; those that only
    bear on single lookups, with every lookup.

    `open_tier_engine`: how the scheduler gets an engine of its own; raises ConfigError.
    """

    def __init__(
        self,
        config: LMCacheEngineConfig,
        address: LookupAddress,
        world_size: int,
        open_tier_engine: Callable[[], TierLookups] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._address = address
        self._world_size = world_size
        self._open_tier_engine = open_tier_engine
        self._clock = clock

    # Clients

    def create_lookup_client(self, is_dry_run: bool = False) -> MadeClient:
        """A dry run's opens no tier. Raises ConfigError."""
        made = self._make_core(is_dry_run)
        try:
            return MadeClient(self._wrap(made.client), made.engine)
        except LMCacheError:
            made.client.close()
            raise

    def _make_core(self, is_dry_run: bool) -> MadeClient:
        ranks = self._lookup_ranks()
        urls = [self._address.url(rank) for rank in range(self._world_size)]
        if self._config.enable_scheduler_bypass_lookup and self._open_tier_engine is not None:
            engine = None if is_dry_run else self._open_tier_engine()
            asking = LMCacheLookupClient(urls, self._timeout_ms, self._clock)
            return MadeClient(LMCacheBypassLookupClient(engine, asking, self._timeout_ms, self._clock), engine)
        if self._config.enable_async_loading:
            return MadeClient(LMCacheAsyncLookupClient(urls, self._timeout_ms, self._clock, ranks))
        return MadeClient(LMCacheLookupClient(urls, self._timeout_ms, self._clock, ranks))

    def _wrap(self, client: LookupClient) -> LookupClient:
        config = self._config
        if config.hit_miss_ratio is not None:
            client = HitLimitLookupClient(client, lambda: config.hit_miss_ratio, config.chunk_size)
        if config.enable_chunk_statistics:
            from lmcache.embedded.lookup.statistics_client import ChunkStatisticsLookupClient
            from lmcache.embedded.statistics.making import make_recorder

            client = ChunkStatisticsLookupClient(client, make_recorder(config))
        return client

    def _timeout_ms(self) -> int:
        return self._config.lookup_timeout_ms

    # Servers

    def create_lookup_server(self, rank: int, target: LookupTarget) -> LookupServer:
        """Not started yet, but there is room for its socket; what dead ones left is gone. Raises ConfigError."""
        self._address.make_folder()
        self._address.sweep()
        if rank not in self._lookup_ranks():
            return self.create_introduction_server(rank, target)
        server_class = LMCacheAsyncLookupServer if self._config.enable_async_loading else LMCacheLookupServer
        return server_class(self._address.path(rank), target)

    def create_introduction_server(self, rank: int, target: LookupTarget) -> LookupServer:
        """Of a rank that answers no lookups. Not started yet."""
        return IntroductionServer(self._address.path(rank), target)

    def _lookup_ranks(self) -> tuple[int, ...]:
        """Who answers lookups. Raises ConfigError."""
        ranks = self._config.lookup_server_worker_ids
        if not ranks:
            return tuple(range(self._world_size))
        unknown = sorted(set(ranks) - set(range(self._world_size)))
        if unknown:
            names = ", ".join(map(str, unknown))
            raise ConfigError(f"{_RANKS_KEY}: there is no rank {names} (ranks are 0 to {self._world_size - 1})")
        return tuple(sorted(set(ranks)))
