"""The tiers below an embedded L1: the same storage manager as in a server, without tenants' quotas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lmcache.embedded.config import EmbeddedConfig
from lmcache.storage.manager import StorageConfig, StorageManager
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import TierConfig
from lmcache.telemetry.metrics import MetricRegistry

# How long a start, or a change, waits for a tier, so that who made it can use it. One that takes longer goes on
# opening: until then it holds nothing, and nobody is kept waiting for it.
OPEN_PATIENCE_S = 1.0


class NoLimits:
    """A `TenantLimits` for a process whose tenants share all there is."""

    def excess(self, usage_bytes: Mapping[str, int]) -> Mapping[str, int]:
        return {}

    def evicted(self, tier: str, tenant: str, num_objects: int, num_bytes: int) -> None:
        """Nobody is brought back to a limit."""


def open_storage(
    config: EmbeddedConfig,
    owner_uid: int,
    boot_id: int,
    metrics: MetricRegistry,
    clock: Callable[[], float],
    is_reader: bool = False,
) -> StorageManager:
    """Makes the adapters and opens none. What L1 keeps is said with every store and every load. Raises ConfigError."""
    storage = StorageConfig(
        adapters=tuple(backend.adapter for backend in config.backends),
        names=tuple(backend.name for backend in config.backends),
        drain_timeout_s=config.drain_timeout_s,
        tier=TierConfig(breaker=config.breaker),
        is_reader=is_reader,
    )
    read_failure = metrics.counter(
        "lmcache_mp_l1_read_failure_chunks", "Objects that were gone when they were to be read",
        "during", "reason", "model_name",
    )  # fmt: skip
    allocation_failure = metrics.counter(
        "lmcache_mp_l1_allocation_failure_chunks", "Objects that found no room", "during", "model_name"
    )
    return StorageManager(
        storage, owner_uid, boot_id, StorageMetrics(metrics, read_failure, allocation_failure), NoLimits(), clock
    )
