"""The half of `CacheOperations` that is about backends by name; the same in every embedded engine."""

from __future__ import annotations

import logging
from collections.abc import Collection

from lmcache.embedded.backends import BackendSet
from lmcache.embedded.tier_clearing import clear_tier
from lmcache.errors import LMCacheError

logger = logging.getLogger(__name__)


class BackendOperations:
    """Any thread; calls may block."""

    def __init__(self, backends: BackendSet) -> None:
        self._backends = backends

    @property
    def is_frozen(self) -> bool:
        return self._backends.routing.is_frozen

    def backends(self) -> dict[str, str]:
        """Name and class of each, in the order of search."""
        return self._backends.classes()

    def bypassed(self) -> list[str]:
        return self._backends.bypassed()

    def bypass(self, name: str, is_bypassed: bool) -> bool:
        """Whether it was bypassed before. Raises UnknownBackendError."""
        return self._backends.bypass(name, is_bypassed)

    def close_backend(self, name: str) -> None:
        """Raises UnknownBackendError, ConfigError."""
        self._backends.close(name)

    def create_backends(self) -> dict[str, str]:
        """Raises ConfigError."""
        return self._backends.create()

    def recreate_backend(self, name: str) -> dict[str, str]:
        """Raises UnknownBackendError, ConfigError."""
        return self._backends.recreate(name)

    def _clear_tiers(self, locations: Collection[str] | None) -> int:
        """Objects removed from these tiers. One that fails does not spare the others. Raises LMCacheError."""
        num_removed = 0
        failures: list[str] = []
        for name, tier in self._backends.tiers():
            if locations is not None and name not in locations:
                continue
            try:
                num_removed += clear_tier(tier)
            except LMCacheError as error:
                logger.warning("%s was not cleared: %s", name, error)
                failures.append(f"{name}: {error}")
        if failures:
            raise LMCacheError(f"removed {num_removed} objects, but not everything ({'; '.join(failures)})")
        return num_removed
