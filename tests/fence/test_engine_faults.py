"""An engine is killed or stopped at each step of store, lookup and load; what must follow is exact."""

import pytest

from lmcache.testing import control as c
from lmcache.testing.faults import Action

# Before anything is reserved; while the engine owns slots; once the commit was acknowledged.
OWNING_STEPS = ("store.granted", "store.copy", "store.half", "store.commit")
LOOKUP_STEPS = ("lookup.asked", "lookup.answered")
LOAD_STEPS = ("load.check", "load.copy", "load.half", "load.copied")
NUM_SLOTS = 32
WRITE_TTL_S = 20.0
NAMES = ["a", "b", "c"]


def strike_store(engine, step, action, names=NAMES):
    engine.arm(step, action)
    engine.tell(c.Store(names))
    assert engine.wait_for_fault(action)


def fill_pool(engine, tag):
    """Store until every slot that can be had holds something else."""
    for start in range(0, NUM_SLOTS, 4):
        engine.store([f"{tag}{number}" for number in range(start, start + 4)])


# Stores


def test_kill_before_reserve_leaves_nothing(site):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, "store.reserve", Action.KILL)
    report = server.cycle()
    assert (report.num_objects, report.num_writing, report.num_quarantined, report.used_bytes) == (0, 0, 0, 0)
    assert other.store(NAMES).num_stored == [3]
    assert other.read(NAMES) == 3


@pytest.mark.parametrize("step", OWNING_STEPS)
def test_kill_of_a_writer_frees_its_slots(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, step, Action.KILL)
    assert server.cycle(reaps=False).num_writing == 3
    assert other.store(NAMES) == c.StoreReport(["skipped"], [0])
    report = server.cycle()
    assert (report.num_objects, report.num_quarantined, report.used_bytes) == (0, 0, 0)
    assert other.store(NAMES).num_stored == [3]
    assert other.read(NAMES) == 3


def test_kill_after_commit_leaves_the_objects(site):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, "store.answered", Action.KILL)
    assert server.settle().num_objects == 3
    assert other.store(NAMES).outcomes == ["skipped"]
    assert other.read(NAMES) == 3


@pytest.mark.parametrize("step", ["store.reserve", *OWNING_STEPS, "store.answered"])
def test_short_stop_of_a_writer_costs_nothing(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, step, Action.STOP)
    server.cycle()
    victim.resume()
    assert victim.answer() == c.StoreReport(["stored"], [3])
    assert other.read(NAMES) == 3
    assert server.settle().num_objects == 3


@pytest.mark.parametrize("step", OWNING_STEPS)
def test_slots_of_a_stopped_writer_are_never_handed_out(site, step):
    """Past its time a write is hidden, its key is free, its bytes are not; then it comes back and writes."""
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, step, Action.STOP)
    report = server.cycle(WRITE_TTL_S + 1)
    assert (report.num_writing, report.num_quarantined) == (0, 3)
    assert other.store(NAMES).num_stored == [3]
    server.clear(force=True)
    fill_pool(other, "fill")
    report = server.cycle()
    assert (report.num_quarantined, report.num_objects) == (3, NUM_SLOTS - 3)
    victim.resume()
    assert victim.answer() == c.StoreReport(["failed"], [0])
    assert server.settle().num_objects == NUM_SLOTS - 3
    names = [f"fill{number}" for number in range(NUM_SLOTS)]
    assert len(other.verify(names)) == 3
    assert other.store(NAMES).num_stored == [3]
    assert other.read(NAMES) == 3


@pytest.mark.parametrize("step", OWNING_STEPS)
def test_slots_of_a_stopped_writer_outlive_a_server_restart(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    strike_store(victim, step, Action.STOP)
    server.kill()
    server = site.start_server(NUM_SLOTS)
    other.wait_joined()
    assert server.cycle().num_quarantined == 3
    fill_pool(other, "fill")
    assert server.cycle().num_objects == NUM_SLOTS - 3
    victim.resume()
    assert victim.answer() == c.StoreReport(["failed"], [0])
    assert server.settle().num_objects == NUM_SLOTS - 3
    assert len(other.verify([f"fill{number}" for number in range(NUM_SLOTS)])) == 3


@pytest.mark.parametrize("step", OWNING_STEPS)
def test_kill_of_a_stopped_writer_frees_what_was_quarantined(site, step):
    server, victim = site.start_server(NUM_SLOTS), site.start_engine("victim")
    strike_store(victim, step, Action.STOP)
    assert server.cycle(WRITE_TTL_S + 1).num_quarantined == 3
    victim.kill()
    report = server.cycle()
    assert (report.num_quarantined, report.used_bytes) == (0, 0)


@pytest.mark.parametrize("step", ["store.commit", "store.answered"])
def test_late_thread_of_a_live_engine_loses_no_slot(site, step):
    """The server is restarted while a copying thread is slow, so that a registration names its slots."""
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine")
    engine.arm(step, Action.DELAY)
    engine.tell(c.Store(NAMES))
    assert engine.wait_for_fault(Action.DELAY)
    server.kill()
    server = site.start_server(NUM_SLOTS)
    engine.answer()
    engine.wait_joined()
    server.settle()


# Lookups and loads


@pytest.mark.parametrize("step", LOOKUP_STEPS)
def test_kill_in_a_lookup_gives_its_locks_back(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    other.store(NAMES)
    victim.arm(step, Action.KILL)
    victim.tell(c.Look("r", NAMES))
    assert victim.wait_for_fault(Action.KILL)
    report = server.settle(without_sessions=True)
    assert (report.num_objects, report.num_clients) == (3, 2)
    assert other.read(NAMES) == 3


@pytest.mark.parametrize("step", LOOKUP_STEPS)
def test_stop_in_a_lookup_keeps_its_promise(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    other.store(NAMES)
    victim.arm(step, Action.STOP)
    victim.tell(c.Look("r", NAMES))
    assert victim.wait_for_fault(Action.STOP)
    if step == "lookup.answered":
        fill_pool(other, "fill")
    victim.resume()
    looked = victim.answer()
    assert looked.num_chunks == 3
    assert server.cycle().num_locked == 3
    assert victim.load(looked) == c.LoadReport(True, "", 0)
    victim.end("r")
    server.settle()


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_kill_in_a_load_gives_its_locks_back(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    other.store(NAMES)
    looked = victim.look("r", NAMES)
    victim.arm(step, Action.KILL, 2)
    victim.tell(c.Load(looked.promise))
    assert victim.wait_for_fault(Action.KILL)
    assert server.cycle(reaps=False).num_locked == 3
    report = server.cycle()
    assert (report.num_locked, report.num_objects) == (0, 3)
    assert other.read(NAMES) == 3


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_locks_hold_while_a_reader_is_stopped(site, step):
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    other.store(NAMES)
    looked = victim.look("r", NAMES)
    victim.arm(step, Action.STOP, 2)
    victim.tell(c.Load(looked.promise))
    assert victim.wait_for_fault(Action.STOP)
    fill_pool(other, "fill")
    victim.resume()
    assert victim.answer() == c.LoadReport(True, "", 0)
    victim.end("r")
    server.settle()


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_reader_stopped_while_all_is_cleared_and_overwritten_fails(site, step):
    """After the copy the slot holds another chunk; the check behind it must see that."""
    server, victim, other = site.start_server(NUM_SLOTS), site.start_engine("victim"), site.start_engine("other")
    other.store(NAMES)
    looked = victim.look("r", NAMES)
    victim.arm(step, Action.STOP)
    victim.tell(c.Load(looked.promise))
    assert victim.wait_for_fault(Action.STOP)
    server.clear(force=True)
    fill_pool(other, "fill")
    victim.resume()
    report = victim.answer()
    expected = "it was evicted or cleared" if step == "load.check" else "it was evicted or cleared while it was read"
    assert (report.is_ok, report.error) == (False, expected)
    assert not victim.take_said()
    victim.end("r")
    assert server.settle().num_objects == NUM_SLOTS


def test_promise_of_a_dead_scheduler_is_checked_by_whoever_loads(site):
    server, scheduler, worker = site.start_server(NUM_SLOTS), site.start_engine("dead"), site.start_engine("worker")
    worker.store(NAMES)
    looked = scheduler.look("r", NAMES)
    scheduler.kill()
    assert worker.load(looked) == c.LoadReport(True, "", 0)
    server.settle()
    fill_pool(worker, "fill")
    report = worker.load(looked)
    assert (report.is_ok, report.error) == (False, "it was evicted or cleared")
