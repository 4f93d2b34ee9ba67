"""The server is killed or stopped at each of its steps; engines get an answer, and nothing acknowledged is lost."""

import pytest

from lmcache.testing import control as c
from lmcache.testing.arena import SERVER_STEPS
from lmcache.testing.faults import Action
from lmcache.testing.processes import HASTY_S, ChildFailedError

NUM_SLOTS = 32
KEPT = [f"kept{number}" for number in range(6)]
NAMES = ["a", "b"]
# Steps behind the slot word READY: the object is there although nobody was told.
COMMITTED_STEPS = ("l1.committed", "store.committed", "store.closed")
STORE_STEPS = tuple(step for step in SERVER_STEPS if not step.startswith("lookup."))
LOOKUP_STEPS = ("lookup.locked", "lookup.promised")


def start(site, num_slots=NUM_SLOTS):
    server, engine = site.start_server(num_slots), site.start_engine("engine")
    assert engine.store(KEPT).num_stored == [6]
    return server, engine


def start_with_hasty_one(site):
    """The last one gives up soon: it shall meet a server that does not answer."""
    server, engine = start(site)
    return server, engine, site.start_engine("hasty", patience_s=4 * HASTY_S)


def check_all_is_well(server, engine, num_objects):
    """Everything acknowledged is readable, nothing is lost, and new things can be stored."""
    engine.wait_joined()
    assert not engine.verify(KEPT)
    assert server.settle().num_objects == num_objects
    engine.store(NAMES)
    assert engine.read(NAMES) == len(NAMES)


# The first or the second object of two; a step of the whole store comes once.
@pytest.mark.parametrize(
    ("step", "occurrence"), [(step, n) for step in STORE_STEPS for n in ((1,) if step.startswith("store.") else (1, 2))]
)
def test_kill_in_a_store(site, step, occurrence):
    server, engine = start(site)
    server.arm(step, Action.KILL, occurrence)
    engine.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.KILL)
    server = site.start_server(NUM_SLOTS)
    assert engine.answer() == c.StoreReport(["failed"], [0])
    num_new = {"l1.committed": occurrence, "l1.commit": occurrence - 1}.get(step, 2 if step in COMMITTED_STEPS else 0)
    recovered = server.cycle(reaps=False)
    assert recovered.num_recovered == len(KEPT) + num_new
    check_all_is_well(server, engine, len(KEPT) + num_new)


@pytest.mark.parametrize("step", LOOKUP_STEPS)
def test_kill_in_a_lookup(site, step):
    server, engine = start(site)
    server.arm(step, Action.KILL)
    engine.tell(c.Look("r", KEPT))
    assert server.wait_for_fault(Action.KILL)
    server = site.start_server(NUM_SLOTS)
    assert engine.answer().num_chunks == 0
    report = server.cycle()
    assert (report.num_recovered, report.num_locked, report.num_sessions) == (len(KEPT), 0, 0)
    check_all_is_well(server, engine, len(KEPT))


def test_kill_at_the_end_of_a_session(site):
    server, engine = start(site)
    engine.look("r", KEPT)
    server.arm("lookup.ended", Action.KILL)
    engine.end("r")
    assert server.wait_for_fault(Action.KILL)
    server = site.start_server(NUM_SLOTS)
    check_all_is_well(server, engine, len(KEPT))


def test_kill_between_eviction_and_reservation(site):
    server, engine = start(site, num_slots=6)
    server.arm("l1.evicted", Action.KILL)
    engine.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.KILL)
    server = site.start_server(6)
    assert engine.answer().num_stored == [0]
    report = server.settle()
    assert (report.num_recovered, report.num_objects) == (5, 5)
    engine.wait_joined()
    assert len(engine.verify(KEPT)) == 1


def test_a_promise_outlives_the_server_that_made_it(site):
    """Between the promise and its load no server is needed."""
    server, engine = start(site)
    looked = engine.look("r", KEPT)
    server.kill()
    assert engine.load(looked) == c.LoadReport(True, "", 0)
    server = site.start_server(NUM_SLOTS)
    assert engine.load(looked) == c.LoadReport(True, "", 0)
    check_all_is_well(server, engine, len(KEPT))


@pytest.mark.parametrize("step", STORE_STEPS)
def test_stop_in_a_store(site, step):
    """The engine gives up after its deadline; what the server does once it goes on is settled, too."""
    server, engine, hasty = start_with_hasty_one(site)
    server.arm(step, Action.STOP)
    hasty.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.STOP)
    assert hasty.answer() == c.StoreReport(["failed"], [0])
    server.resume()
    hasty.wait_joined()
    is_in_commit = step == "l1.commit" or step in COMMITTED_STEPS
    check_all_is_well(server, engine, len(KEPT) + (2 if is_in_commit else 0))


@pytest.mark.parametrize("step", LOOKUP_STEPS)
def test_stop_in_a_lookup_leaves_no_lock(site, step):
    server, engine, hasty = start_with_hasty_one(site)
    server.arm(step, Action.STOP)
    hasty.tell(c.Look("r", KEPT))
    assert server.wait_for_fault(Action.STOP)
    assert hasty.answer().num_chunks == 0
    server.resume()
    hasty.wait_joined()
    check_all_is_well(server, engine, len(KEPT))


def test_short_stop_costs_nothing(site):
    server, engine = start(site)
    server.arm("store.reserved", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.STOP)
    server.resume()
    assert engine.answer() == c.StoreReport(["stored"], [2])
    check_all_is_well(server, engine, len(KEPT) + 2)


def test_nobody_waits_for_a_server_that_is_gone(site):
    server = site.start_server(NUM_SLOTS)
    engine = site.start_engine("engine", patience_s=40.0)
    server.arm("store.reserved", Action.KILL)
    engine.tell(c.Store(NAMES))
    assert server.wait_for_fault(Action.KILL)
    assert engine.answer(20.0) == c.StoreReport(["failed"], [0])
    server = site.start_server(NUM_SLOTS)
    engine.wait_joined()
    assert engine.store(NAMES) == c.StoreReport(["stored"], [2])
    server.settle()


def test_every_acknowledged_object_survives_many_kills(site):
    """No pressure, no clears: whatever was acknowledged is there after each restart."""
    server, engine = site.start_server(128), site.start_engine("engine", num_ranks=2)
    acknowledged = []
    for number, step in enumerate((*STORE_STEPS, "lookup.locked", "lookup.promised", "lookup.ended")):
        names = [f"n{number}.{index}" for index in range(4)]
        assert engine.store(names).num_stored == [4, 4]
        acknowledged += names
        server.arm(step, Action.KILL)
        engine.tell(c.Store([f"lost{number}"]) if step in STORE_STEPS else c.Verify(names[:1]))
        assert server.wait_for_fault(Action.KILL)
        server = site.start_server(128)
        engine.answer()
        engine.wait_joined()
        assert not engine.verify(acknowledged)
        server.settle()


def test_second_server_does_not_take_a_stopped_ones_pool(site):
    server, engine = start(site)
    server.stop()
    with pytest.raises(ChildFailedError, match="did not start"):
        site.start_server(NUM_SLOTS)
    server.resume()
    check_all_is_well(server, engine, len(KEPT))
