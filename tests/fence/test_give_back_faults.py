"""The server is killed or stopped while it takes back what a lookup locked; and no step is left to chance alone."""

import pytest

from lmcache.testing import control as c
from lmcache.testing.arena import ENGINE_STEPS, PRESSURE_STEPS, SERVER_STEPS
from lmcache.testing.faults import Action
from lmcache.testing.processes import PATIENT_S
from lmcache.testing.waiting import wait_until
from tests.fence import test_engine_faults, test_server_faults

NUM_SLOTS = 32
NUM_KEPT = 2
HELD = [f"held{number}" for number in range(6)]
NAMES = ["a", "b"]
GIVE_BACK_STEPS = ("lookup.released", "lookup.ended")


def start_filled(site, num_slots=NUM_SLOTS):
    """With an engine that does not take a stopped server for gone, and may lock all there is."""
    server, engine = site.start_server(num_slots, lock_fraction=10.0), site.start_engine("engine", patience_s=PATIENT_S)
    assert engine.store(HELD).num_stored == [len(HELD)]
    return server, engine


def start(site):
    """With a lookup that has locked all there is."""
    server, engine = start_filled(site)
    looked = engine.look("r", HELD)
    # The session with which the engine saw that it had joined ends a moment later: not that end shall meet the fault.
    wait_until(lambda: server.cycle().num_sessions == 1)
    assert server.cycle().num_locked == len(HELD)
    return server, engine, looked


def give_back(engine, looked, step):
    """What reaches this step; what is promised after it."""
    if step == "lookup.released":
        return engine.keep("r", looked, NUM_KEPT)
    engine.end("r")
    return None


def check_all_is_well(server, engine):
    engine.wait_joined()
    assert not engine.verify(HELD)
    engine.store(NAMES)
    assert engine.read(NAMES) == len(NAMES)
    engine.end("r")
    assert server.settle(without_sessions=True).num_objects == len(HELD) + len(NAMES)


@pytest.mark.parametrize("step", GIVE_BACK_STEPS)
def test_kill_loses_no_object_and_leaves_no_lock(site, step):
    server, engine, looked = start(site)
    server.arm(step, Action.KILL)
    kept = give_back(engine, looked, step)
    assert server.wait_for_fault(Action.KILL)
    if kept is not None:
        assert engine.load(kept) == c.LoadReport(True, "", 0)
    server = site.start_server(NUM_SLOTS)
    report = server.cycle(reaps=False)
    assert (report.num_recovered, report.num_locked, report.num_sessions) == (len(HELD), 0, 0)
    check_all_is_well(server, engine)


@pytest.mark.parametrize("step", GIVE_BACK_STEPS)
def test_stop_keeps_just_what_is_still_promised(site, step):
    server, engine, looked = start(site)
    server.arm(step, Action.STOP)
    kept = give_back(engine, looked, step)
    assert server.wait_for_fault(Action.STOP)
    if kept is not None:
        assert engine.load(kept) == c.LoadReport(True, "", 0)
    server.resume()
    num_kept = 0 if kept is None else NUM_KEPT
    assert server.cycle().num_locked == num_kept
    assert server.clear(force=False) == len(HELD) - num_kept
    if kept is not None:
        assert engine.load(kept) == c.LoadReport(True, "", 0)
    engine.end("r")
    assert server.settle(without_sessions=True).num_objects == num_kept
    assert engine.store(HELD).num_stored == [len(HELD) - num_kept]
    check_all_is_well(server, engine)


def test_stop_between_eviction_and_reservation(site):
    """Whoever asked gets what was made free for it."""
    server, engine = start_filled(site, num_slots=len(HELD))
    server.arm("l1.evicted", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.STOP)
    server.resume()
    assert engine.answer() == c.StoreReport(["stored"], [len(NAMES)])
    assert engine.read(NAMES) == len(NAMES)
    assert len(engine.verify(HELD)) == len(NAMES)
    assert server.settle().num_objects == len(HELD)


def test_every_step_has_a_test_of_its_own():
    """The random rounds choose among these; what they do not come to must not go untried."""
    of_the_server = {*test_server_faults.STORE_STEPS, *test_server_faults.LOOKUP_STEPS, *GIVE_BACK_STEPS}
    assert of_the_server == {*SERVER_STEPS}
    assert PRESSURE_STEPS == ("l1.evicted",)
    of_engines = {"store.reserve", *test_engine_faults.OWNING_STEPS, "store.answered"}
    of_engines |= {*test_engine_faults.LOOKUP_STEPS, *test_engine_faults.LOAD_STEPS}
    assert of_engines == {*ENGINE_STEPS}
