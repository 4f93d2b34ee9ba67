"""What operators and a changed configuration do to the engine of a rank. Knows no pages and no lookups.

Switches that concern L1 are set twice: in the routing, which those who begin something read, and in L1 itself,
under its mutex, for those who are in the middle of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from lmcache.embedded.backend_operations import BackendOperations
from lmcache.embedded.backends import BackendSet, routing_of
from lmcache.embedded.config import EmbeddedConfig, Rank
from lmcache.embedded.fs_chunks import ChunkAdmission, load_fs_chunks
from lmcache.embedded.lookup_locks import LookupLocks
from lmcache.embedded.mock import MockTokens
from lmcache.embedded.operations import LoadedChunks
from lmcache.embedded.routing import L1_BACKEND
from lmcache.errors import ConfigError, LMCacheError
from lmcache.eviction import make_policy
from lmcache.l1.manager import L1Manager
from lmcache.storage.manager import StorageManager
from lmcache.telemetry.periodic import PeriodicThread

logger = logging.getLogger(__name__)

# How long a switch of the hot cache waits for stores to the tiers, which read from L1.
_HAND_OVER_S = 1.0


class EngineOperations(BackendOperations):
    """A `CacheOperations`. Any thread; calls may block."""

    def __init__(
        self,
        config: EmbeddedConfig,
        rank: Rank,
        backends: BackendSet,
        storage: StorageManager,
        l1: L1Manager,
        locks: LookupLocks,
        monitor: PeriodicThread,
        mock: MockTokens,
        admission: ChunkAdmission,
    ) -> None:
        super().__init__(backends)
        self.config = config
        self._rank = rank
        self._storage = storage
        self._l1 = l1
        self._locks = locks
        self._monitor = monitor
        self._mock = mock
        self._admission = admission

    def clear(self, locations: Collection[str] | None = None, force: bool = False) -> int:
        """Objects removed, but for those in use. `force`: L1's that are locked go as well, and their loads fail.
        Tiers that another rank writes are cleared by that one. Raises LMCacheError."""
        num_removed = self._l1.clear(force) if locations is None or L1_BACKEND in locations else 0
        return num_removed + (self._clear_tiers(locations) if self._rank.writes_to_tiers else 0)

    def freeze(self, is_frozen: bool) -> None:
        with self._backends.changing:
            if is_frozen:
                self._backends.change(is_frozen=True)
                self._l1.freeze(True)
                self._backends.settle()
            elif self.is_frozen:
                self._l1.freeze(False)
                self._backends.change(is_frozen=False)

    @property
    def has_hot_cache(self) -> bool:
        return self._backends.routing.keeps_l1

    def set_hot_cache(self, is_on: bool) -> None:
        """Off: what readers have locked goes with their last lock."""
        with self._backends.changing:
            if is_on:
                self._l1.keep_loaded(True)
                self._backends.change(keeps_l1=True)
            elif self.has_hot_cache:
                self._backends.change(keeps_l1=False)
                self._storage.stores.wait_until_empty(_HAND_OVER_S)
                self._l1.keep_loaded(False)
                self._l1.clear(force=False)

    def backends(self) -> dict[str, str]:
        return {L1_BACKEND: type(self._l1).__name__, **super().backends()}

    def check(self, config: EmbeddedConfig) -> None:
        """Raises ConfigError where `follow` could not apply it."""
        make_policy(config.eviction_policy)
        self._backends.check(config)

    def follow(self, config: EmbeddedConfig) -> None:
        """Apply what differs from the configuration before; what cannot be applied is told, and stays as it is."""
        with self._backends.changing:
            before, self.config = self.config, config
            if config.eviction_policy != before.eviction_policy:
                self._set_policy(config.eviction_policy)
            self._locks.ttl_s = config.lock_ttl_s
            self._monitor.interval_s = config.lock_check_interval_s
            self._monitor.wake()
            wanted = routing_of(config)
            changed = {name: value for name, value in wanted.items() if value != routing_of(before)[name]}
            if changed.pop("keeps_l1", None) is not None:
                self.set_hot_cache(config.keeps_l1)
            self._backends.change(**changed)
            self._backends.follow(config)

    def _set_policy(self, name: str) -> None:
        try:
            self._l1.set_policy(make_policy(name))
        except ConfigError as error:
            logger.error("%s keeps its order of eviction: %s", L1_BACKEND, error)

    # Tokens that no request has

    def store_mock(self, token_ids: Sequence[int]) -> int:
        return self._mock.store(token_ids)

    def retrieve_mock(self, token_ids: Sequence[int]) -> int:
        return self._mock.retrieve(token_ids)

    # Files

    def load_fs_chunks(self, config_path: str, num_chunks_max: int | None) -> LoadedChunks:
        """Refused where L1 would not keep them."""
        routing = self._backends.routing
        reasons = ((routing.is_frozen, "the engine is frozen"), (not routing.keeps_l1, "the hot cache is off"))
        for is_so, reason in (*reasons, (L1_BACKEND in routing.bypassed, f"{L1_BACKEND} is bypassed")):
            if is_so:
                raise LMCacheError(f"nothing can be loaded into L1: {reason}")
        dtype = self._rank.layout.groups[0].dtype
        return load_fs_chunks(config_path, num_chunks_max, dtype, self._admission.admit)
