"""A store announced before its pages are computed: nothing is read early, and no slot is kept for what never comes.

The blocks of an announced store hold poison until it is submitted, so that a copy made too early shows.
"""

import time

import pytest

from lmcache.testing import control as c
from lmcache.testing.faults import Action

NUM_SLOTS = 32
WRITE_TTL_S = 20.0
NAMES = ["a", "b", "c"]
OTHERS = ["x", "y"]
TIMEOUT_S = 60.0


def wait_for_writing(server, num_slots):
    """Until so many slots are reserved and not committed."""
    deadline = time.monotonic() + TIMEOUT_S
    while (report := server.cycle(reaps=False)).num_writing != num_slots:
        assert time.monotonic() < deadline, report
    return report


def start(site):
    server, engine, other = site.start_server(NUM_SLOTS), site.start_engine("engine"), site.start_engine("other")
    engine.arm("store.granted", Action.DELAY, delay_s=0.0)
    engine.announce(NAMES)
    wait_for_writing(server, len(NAMES))
    assert engine.wait_for_fault(Action.DELAY), "the engine knows of its slots, too"
    return server, engine, other


def test_an_announced_store_has_its_slots_before_its_pages(site):
    server, engine, other = start(site)
    assert other.store(NAMES) == c.StoreReport(["skipped"], [0])
    assert other.read(NAMES) == 0
    assert engine.store(NAMES) == c.StoreReport(["stored"], [3])
    assert other.read(NAMES) == 3
    assert server.settle().num_objects == 3


def test_every_rank_prepares(site):
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine", num_ranks=2)
    engine.announce(NAMES)
    wait_for_writing(server, 2 * len(NAMES))
    assert engine.store(NAMES) == c.StoreReport(["stored"] * 2, [3] * 2)
    assert engine.read(NAMES) == 3
    assert server.settle().num_objects == 6


def test_what_is_withdrawn_gives_its_slots_back_and_is_reported_nowhere(site):
    server, engine, other = start(site)
    engine.ask(c.Pause())
    report = server.settle()
    assert (report.num_objects, report.used_bytes) == (0, 0)
    assert other.store(NAMES).num_stored == [3]


def test_a_new_announcement_replaces_the_old(site):
    server, engine, _ = start(site)
    engine.announce(OTHERS)
    wait_for_writing(server, len(OTHERS))
    assert engine.store(OTHERS).num_stored == [2]
    assert server.settle().num_objects == 2


def test_another_store_than_the_announced_voids_it(site):
    server, engine, other = start(site)
    assert engine.store(OTHERS) == c.StoreReport(["stored"], [2])
    assert server.settle().num_objects == 2
    assert engine.store(NAMES) == c.StoreReport(["stored"], [3])
    assert other.read([*NAMES]) == 3


@pytest.mark.parametrize("step", ["store.reserve", "store.granted"])
def test_kill_of_an_engine_that_announced_frees_its_slots(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    victim.arm(step, Action.KILL)
    victim.tell(c.Announce(NAMES))
    assert victim.wait_for_fault(Action.KILL)
    report = server.cycle()
    assert (report.num_objects, report.num_writing, report.num_quarantined, report.used_bytes) == (0, 0, 0, 0)
    assert other.store(NAMES).num_stored == [3]


def test_a_forward_pass_that_outlives_the_reservation_costs_a_miss(site):
    server, engine, other = start(site)
    assert server.cycle(WRITE_TTL_S + 1).num_quarantined == 3
    assert other.store(NAMES).num_stored == [3]
    assert engine.store(NAMES) == c.StoreReport(["failed"], [0])
    assert server.settle().num_objects == 3
    assert other.read(NAMES) == 3


def test_a_clear_between_announcement_and_store_costs_a_miss(site):
    server, engine, other = start(site)
    server.clear(force=True)
    assert engine.store(NAMES) == c.StoreReport(["failed"], [0])
    assert server.settle().num_objects == 0
    assert engine.store(NAMES) == c.StoreReport(["stored"], [3])
    assert other.read(NAMES) == 3


def test_a_restart_between_announcement_and_store_loses_no_slot(site):
    server, engine, other = start(site)
    server.kill()
    server = site.start_server(NUM_SLOTS)
    engine.wait_joined()
    other.wait_joined()
    assert engine.store(NAMES) == c.StoreReport(["failed"], [0])
    report = server.settle()
    assert (report.num_objects, report.used_bytes) == (0, 0)
    assert engine.store(NAMES) == c.StoreReport(["stored"], [3])
    assert other.read(NAMES) == 3


def test_an_announcement_that_nobody_answers_delays_no_store(site):
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine")
    server.kill()
    engine.announce(NAMES)
    server = site.start_server(NUM_SLOTS)
    engine.wait_joined()
    engine.store(NAMES)
    server.settle()
    engine.store(NAMES)
    assert engine.read(NAMES) == 3
