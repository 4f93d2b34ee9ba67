"""What takes part: freeze, hot cache, bypass and locations, alone and together."""

from __future__ import annotations

import pytest

from lmcache.embedded.routing import L1_BACKEND, Routing
from lmcache.storage.tier_route import TierRoute

DISK = "LocalDiskBackend"
ALL = frozenset({L1_BACKEND})


@pytest.mark.parametrize(
    ("routing", "reads_l1", "keeps_stores", "retains", "tier"),
    [
        (Routing(), True, True, True, TierRoute()),
        (Routing(is_frozen=True), True, True, False, TierRoute(False, False, True)),
        (Routing(keeps_l1=False), True, False, False, TierRoute()),
        (Routing(bypassed=ALL), False, False, False, TierRoute()),
        (Routing(bypassed=frozenset({DISK})), True, True, True, TierRoute(False, False)),
        (Routing(retrieve_locations=frozenset({DISK})), False, True, False, TierRoute()),
        (Routing(retrieve_locations=ALL), True, True, True, TierRoute(reads=False)),
        (Routing(store_location=DISK), True, False, True, TierRoute()),
        (Routing(store_location=L1_BACKEND), True, True, True, TierRoute(stores=False)),
        (Routing(is_frozen=True, bypassed=ALL), False, False, False, TierRoute(False, False, True)),
    ],
)
def test_what_takes_part(routing: Routing, reads_l1: bool, keeps_stores: bool, retains: bool, tier: TierRoute) -> None:
    assert (routing.reads_l1, routing.keeps_stores, routing.retains) == (reads_l1, keeps_stores, retains)
    assert routing.tier(DISK) == tier
    assert routing.stores_l1 == (keeps_stores and not routing.is_frozen)
