"""What tiers tell the metrics of their half, by their documented names. Knows no engine."""

from __future__ import annotations

from lmcache.config.engine.tiers import REMOTE
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.storage.tier import Tier


def watch_tier(metrics: EmbeddedMetrics, name: str, tier: Tier) -> None:
    """Have a remote tier, by its documented name, tell what comes and goes. Others are counted by their own names."""
    if is_kind(name, REMOTE):
        tier.on_loaded, tier.on_stored = metrics.remote_read, metrics.remote_written


def is_kind(name: str, kind: str) -> bool:
    """Backends of a kind have names that begin with it."""
    return name.split("-", 1)[0] == kind
