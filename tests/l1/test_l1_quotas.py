"""Limits that change while L1 is full."""

from __future__ import annotations

from lmcache.l1.namespace import NamespaceKey
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

UNITS = 4


def test_lowered_limit_counts_at_once(open_pool: OpenPool) -> None:
    """Whoever is beyond it gives up room to others, though nobody looked at limits since."""
    pool = open_pool(units=UNITS, policy="IsolatedLRU")
    rich = Writer(pool.l1, NamespaceKey("m", b"r" * 32, "rich"), (0, 0))
    poor = Writer(pool.l1, NamespaceKey("m", b"r" * 32, "poor"), (0, 0))
    pool.quotas.set("rich", UNITS * UNIT_BYTES)
    assert rich.store([bytes([n]) * 32 for n in range(UNITS)]) == UNITS
    assert pool.l1.tenants_beyond_limit() == []

    pool.quotas.set("rich", 0)

    assert poor.store([b"p" * 32]) == 1
    assert rich.holds([bytes([n]) * 32 for n in range(UNITS)]).count(True) == UNITS - 1
