"""Says and counts what unregistered tenants lose: with quotas, who has none may keep nothing."""

from __future__ import annotations

import logging
import threading

from lmcache.telemetry.metrics import MetricRegistry

logger = logging.getLogger(__name__)

# Salts come from outside: past this many, one line speaks for all the others.
_NUM_TENANTS_NAMED_MAX = 1000


class WipeLog:
    """One log line per tenant, and counters. Thread-safe."""

    def __init__(self, metrics: MetricRegistry) -> None:
        self._chunks = metrics.counter(
            "lmcache_mp_quota_wiped_chunks", "Objects evicted for belonging to a tenant without a quota", "cache_salt"
        )
        self._bytes = metrics.counter(
            "lmcache_mp_quota_wiped_bytes", "Bytes evicted for belonging to a tenant without a quota", "cache_salt"
        )
        self._named: set[str] = set()
        self._mutex = threading.Lock()

    def note(self, tier: str, cache_salt: str, num_objects: int, num_bytes: int) -> None:
        """A tenant without a quota lost all that it held in a tier and that nobody had locked."""
        if not num_objects:
            return
        self._chunks.add(num_objects, cache_salt)
        self._bytes.add(num_bytes, cache_salt)
        if line := self._first_line(cache_salt):
            logger.warning("%s (%d objects, %d bytes of %s)", line, num_objects, num_bytes, tier)

    def _first_line(self, cache_salt: str) -> str:
        with self._mutex:
            if cache_salt in self._named or len(self._named) > _NUM_TENANTS_NAMED_MAX:
                return ""
            self._named.add(cache_salt)
            if len(self._named) > _NUM_TENANTS_NAMED_MAX:
                return "more tenants without a quota keep nothing; they are counted, and not named any more"
        name = cache_salt or "_default"
        who = f"tenant {name}" if cache_salt else f"tenant {name} (requests without a cache_salt)"
        return f"{who} has no quota, so nothing is kept for it: PUT /quota/{name} sets one"
