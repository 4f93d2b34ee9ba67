"""Tiers that take part in part: what waits already goes by it, too."""

from __future__ import annotations

import threading

import pytest

from lmcache.errors import ConfigError
from lmcache.l1.tier_moves import HeldObject
from lmcache.l1.values import Place
from lmcache.l2.registry import parse_adapters
from lmcache.storage.tier_route import TierRoute
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.storage.test_manager import MEMORY, OBJECT_BYTES, OpenSite, Site, hold_writes, open_site

__all__ = ["open_site"]

NO_STORES, FROZEN = TierRoute(stores=False), TierRoute(reads=False, stores=False, is_frozen=True)


def let_go_of(site: Site) -> list[Place]:
    """What L1 is told to let go of from now on."""
    told: list[Place] = []
    site.pool.l1.let_go = told.extend  # type: ignore[attr-defined]
    return told


def test_what_waits_for_a_tier_that_takes_no_stores_is_dropped(open_site: OpenSite) -> None:
    site = open_site(MEMORY, MEMORY)
    let_pass = hold_writes(site)
    site.store(*range(50))
    wait_until(lambda: len(site.held(1)) == 50)
    site.manager.route(0, NO_STORES)
    let_pass()
    assert site.manager.stores.wait_until_still(PATIENCE_S)
    assert len(site.held()) <= 4
    wait_until(lambda: not site.manager.stores.num_pending)
    site.store(60)
    wait_until(lambda: 60 in site.held(1))
    site.manager.route(0, TierRoute())
    site.store(61)
    wait_until(lambda: 61 in site.held())
    assert len(site.held()) <= 5


def test_what_waits_for_a_frozen_tier_waits_on(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    site.manager.route(0, FROZEN)
    site.store(1)
    assert (site.manager.stores.num_pending, site.manager.stores.has_tiers) == (0, False)
    site.manager.route(0, TierRoute())
    let_pass = hold_writes(site)
    site.store(*range(40))
    wait_until(lambda: site.manager.stores.num_inflight > 0)
    site.manager.route(0, FROZEN)
    let_pass()
    assert site.manager.stores.wait_until_still(PATIENCE_S)
    num_held = len(site.held())
    assert num_held <= 4
    assert not site.manager.stores.wait_until_empty(0.05)
    site.manager.route(0, TierRoute())
    assert site.manager.stores.wait_until_empty(PATIENCE_S)
    assert len(site.held()) == 40


def test_a_clean_stop_does_not_wait_for_a_frozen_tier(open_site: OpenSite) -> None:
    site = open_site(MEMORY, drain_timeout_s=3600.0)
    let_pass = hold_writes(site)
    site.store(*range(10))
    site.manager.route(0, FROZEN)
    let_pass()
    closing = threading.Thread(target=site.manager.close)
    closing.start()
    closing.join(PATIENCE_S)
    was_closed = not closing.is_alive()
    site.manager.route(0, TierRoute())
    closing.join()
    assert was_closed


@pytest.mark.parametrize("route", [TierRoute(), NO_STORES])
def test_what_passes_through_is_let_go_whatever_becomes_of_it(open_site: OpenSite, route: TierRoute) -> None:
    site = open_site(MEMORY, '{"type": "memory", "max_size_gb": 0.0000001}')
    told = let_go_of(site)
    for index in (0, 1):
        site.manager.route(index, route)
    places = [site.pool.put(number) for number in range(3)]
    site.manager.stores.submit(site.pool, places, "", "", is_passing=True)  # type: ignore[arg-type]
    wait_until(lambda: sorted(told) == places)
    assert site.held() == ({0, 1, 2} if route.stores else set())


def test_a_frozen_tier_evicts_nothing(open_site: OpenSite) -> None:
    eviction = '"eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.1}'
    site = open_site(f'{{"type": "memory", "max_size_gb": {20 * OBJECT_BYTES / 2**30}, {eviction}}}')
    site.manager._loops.eviction.stop()
    tier = site.manager.tiers()[0]
    wait_until(lambda: not tier._workers._chore_names)  # what that loop has begun
    site.store(*range(10))
    wait_until(lambda: len(site.held()) == 10)
    site.manager.route(0, FROZEN)
    site.manager._evictor._keep_house(tier)
    assert len(site.held()) == 10
    site.manager.route(0, TierRoute())
    site.manager._evictor._keep_house(tier)
    assert len(site.held()) < 10


def test_lookups_and_loads_that_wait_find_nothing(open_site: OpenSite) -> None:
    """A tier that is not read is not asked, not even by those who were in its queue before."""
    site = open_site(MEMORY)
    site.store(1)
    wait_until(lambda: site.held() == {1})
    tier, key = site.manager.tiers()[0], site.adapter().keys_after(0, 1)[0][0]
    found: list[list[bool]] = []
    loaded: list[object] = []
    site.manager.route(0, TierRoute(reads=False))
    assert site.manager.prefetches.usable_tiers() == []
    tier.submit_lookup([key], found.append, 1e12)
    tier.submit_load(key, memoryview(bytearray(OBJECT_BYTES)), loaded.append)
    wait_until(lambda: bool(found and loaded))
    assert (found, loaded) == ([[False]], [None])


def test_an_adapter_is_replaced_the_same_way(open_site: OpenSite) -> None:
    site = open_site(MEMORY)
    site.manager.route(0, NO_STORES)
    bad, good = parse_adapters(['{"type": "fs", "base_path": "/dev/null/x"}', MEMORY])
    with pytest.raises(ConfigError):
        site.manager.replace_adapter(0, bad)
    assert [tier.index for tier in site.manager.tiers()] == [0]
    assert site.manager.replace_adapter(0, good, 1.0) == 1
    assert [(tier.index, tier.route) for tier in site.manager.tiers()] == [(1, NO_STORES)]


def test_an_object_on_its_way_to_a_tier_is_waited_for(open_site: OpenSite) -> None:
    """Between the queue and the tier, too: who asks whether anything waits may clear L1 then."""
    site = open_site(MEMORY)
    stores, seen = site.manager.stores, []
    describe = site.pool.l1.describe

    def describe_and_look(place: Place) -> HeldObject | None:
        seen.append((stores.wait_until_empty(0.0), stores.num_pending + stores.num_inflight))
        return describe(place)

    site.pool.l1.describe = describe_and_look  # type: ignore[method-assign]
    site.store(1)
    assert stores.wait_until_empty(PATIENCE_S)
    assert site.held() == {1}
    assert seen == [(False, 1)]
    site.pool.l1.held.clear()
    site.manager.stores.submit(site.pool, [Place(2, 1, 10)], "", "")  # type: ignore[arg-type]
    assert stores.wait_until_empty(PATIENCE_S)
    assert (stores.num_pending, stores.num_inflight) == (0, 0)


def test_a_tier_that_goes_ends_each_of_its_stores_once(open_site: OpenSite) -> None:
    """Also those that are just being taken from its queue: another tier waits for the same objects."""
    site = open_site(MEMORY, MEMORY)
    told, stores = let_go_of(site), site.manager.stores
    site.manager.route(0, FROZEN)
    site.manager.route(1, FROZEN)
    going = stores._queues[1]
    for index in (0, 1):  # they wait on, since what is frozen is not lost
        site.manager.tiers()[index].route = TierRoute(is_frozen=True)
    stores.submit(site.pool, [site.pool.put(number) for number in (1, 2)], "", "", is_passing=True)  # type: ignore[arg-type]
    stores.remove_tier(1)
    going.tier.route = TierRoute()
    stores._pump(going)
    wait_until(lambda: not going.num_inflight)
    assert told == []
    site.manager.route(0, TierRoute())
    wait_until(lambda: len(told) == 2)
    assert site.held() == {1, 2}
