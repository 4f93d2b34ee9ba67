"""A real trace through L1: it finds what the pure simulation finds, and a flood takes nothing from others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from benchmarks.policies import hit_rate, num_unique
from lmcache.engine.pool import Pool
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_places
from tests.eviction.test_replay import REQUESTS
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

RANK = (0x01000100, 0)
# Enough for evictions to be the rule.
TRACE = REQUESTS[:500]
NUM_SLOTS = int(num_unique(TRACE) * 0.1)


class Tenant:
    """Asks for prompts as an engine does: a hint, lock the hit, let go of it, store the rest, end."""

    def __init__(self, l1: L1Manager, salt: str) -> None:
        self.writer = Writer(l1, NamespaceKey("m", b"r" * 32, salt), RANK)
        self.num_asked = 0
        self.num_hit = 0

    def ask(self, request: Sequence[int]) -> None:
        digests = [block.to_bytes(32, "little") for block in request]
        self.writer.l1.lookup(self.writer.key, [RANK], digests, None)
        slots, blob = self.writer.l1.lookup(self.writer.key, [RANK], digests, LockBudget(1 << 40))
        self.num_asked += len(digests)
        self.num_hit += len(slots)
        self.writer.l1.unlock([Place(slot, word) for slot, word, _, _ in split_places(blob)])
        self.writer.store(digests[len(slots) :])
        self.writer.l1.touch(self.writer.key, [RANK], digests)

    @property
    def hit_rate(self) -> float:
        return self.num_hit / self.num_asked


@pytest.mark.parametrize("policy", ["LRU", "IsolatedLRU", "ARC", "S3-FIFO"])
def test_l1_finds_what_the_pure_simulation_finds(open_pool: OpenPool, policy: str) -> None:
    pool = open_pool(units=NUM_SLOTS, records=NUM_SLOTS + 64, policy=policy)
    pool.quotas.set("", NUM_SLOTS * UNIT_BYTES)
    tenant = Tenant(pool.l1, "")
    for request in TRACE:
        tenant.ask(request)
    assert tenant.hit_rate == pytest.approx(hit_rate(policy, TRACE, NUM_SLOTS), rel=0.01)
    pool.l1.check_integrity()


def bring_back(pool: Pool) -> None:
    for salt in pool.l1.tenants_beyond_limit():
        pool.l1.evict_excess(salt, pool.quotas.limit_bytes(salt), 1 << 20)


@pytest.mark.parametrize("flood_share", [1.0, 0.25, 0.0])
def test_a_tenant_within_its_quota_finds_as_much_beside_a_flood_as_alone(
    open_pool: OpenPool, flood_share: float
) -> None:
    """The flood is within its quota, has a small one, or none at all; cycles run now and then."""
    flood_slots = int(NUM_SLOTS * flood_share)
    pool = open_pool(units=NUM_SLOTS + flood_slots, records=2 * NUM_SLOTS + 64, policy="IsolatedLRU")
    pool.quotas.set("quiet", NUM_SLOTS * UNIT_BYTES)
    if flood_slots:
        pool.quotas.set("flood", flood_slots * UNIT_BYTES)
    quiet, flood, fresh = Tenant(pool.l1, "quiet"), Tenant(pool.l1, "flood"), itertools.count()
    for number, request in enumerate(TRACE):
        quiet.ask(request)
        for _ in range(3):
            flood.ask([next(fresh) for _ in range(len(request))])
        if number % 10 == 0:
            bring_back(pool)
    assert quiet.hit_rate == pytest.approx(hit_rate("LRU", TRACE, NUM_SLOTS), rel=0.01)
    assert pool.l1.usage_bytes_by_salt()["quiet"] <= NUM_SLOTS * UNIT_BYTES
    pool.l1.check_integrity()
