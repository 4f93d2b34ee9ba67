"""What operators and crashes do to a running system: clears, deleted folders, swarms of aborted requests."""

import random
import shutil
import time

import pytest

from lmcache.testing import control as c
from lmcache.testing.faults import Action
from lmcache.testing.nursery import can_make_pid_namespaces

NUM_SLOTS = 32
NAMES = ["a", "b", "c"]


def count_whole(engine):
    """Loads that ended well since the last call; none of them with a wrong byte."""
    said = engine.take_said()
    assert not [message for message in said if isinstance(message, c.WrongBytes)]
    return sum(message.num_ok for message in said if isinstance(message, c.TrafficCount))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_forced_clear_under_running_copies(site, num_ranks):
    """Clears rain on loads and stores of two engines; what is reported whole is whole, and all slots come back."""
    server = site.start_server(NUM_SLOTS)
    engines = [site.start_engine(f"engine-{number}", num_ranks) for number in range(2)]
    for number, engine in enumerate(engines):
        engine.ask(c.Traffic(number, 4, 6))
    num_cleared, num_whole, deadline = 0, 0, time.monotonic() + 60
    while num_cleared < 300 or num_whole < 100:
        assert time.monotonic() < deadline, (num_cleared, num_whole)
        num_cleared += server.clear(force=True)
        # What requests that nobody ended hold counts against their client's share until they expire.
        server.cycle(random.choice((0.0,) * 50 + (41.0,)))
        time.sleep(random.random() * 0.004)
        num_whole += sum(count_whole(engine) for engine in engines)
    for engine in engines:
        engine.ask(c.Pause())
        count_whole(engine)
    server.cycle(41.0)
    server.settle()
    server.clear(force=True)
    assert server.cycle().used_bytes == 0


def test_clear_without_force_leaves_what_is_locked(site):
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine")
    engine.store([*NAMES, "free"])
    looked = engine.look("r", NAMES)
    assert server.clear(force=False) == 1
    assert engine.load(looked).is_ok
    engine.end("r")
    server.settle()
    assert server.clear(force=False) == 3


def test_forced_clear_hides_a_write_under_way(site):
    """Its owner finishes it and is refused; nobody ever sees the object, the slot comes back."""
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine")
    engine.arm("store.half", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert engine.wait_for_fault(Action.STOP)
    server.clear(force=True)
    assert server.cycle().num_quarantined == 3
    engine.resume()
    assert engine.answer() == c.StoreReport(["failed"], [0])
    assert server.settle().used_bytes == 0
    assert engine.read(NAMES) == 0


def test_deleted_pool_folder_is_made_anew(site):
    """Objects are lost, clients come back by themselves, and the cache works again."""
    server, engine, other = site.start_server(NUM_SLOTS), site.start_engine("engine"), site.start_engine("other")
    engine.store(NAMES)
    looked = other.look("r", NAMES)
    shutil.rmtree(site.folder)
    assert other.load(looked) == c.LoadReport(True, "", 0)
    assert server.cycle().num_objects == 0
    engine.wait_joined()
    other.wait_joined()
    assert other.load(looked).error == "the pool it was promised in is gone"
    assert engine.store(NAMES).num_stored == [3]
    assert other.read(NAMES) == 3
    server.settle()


def test_deleted_pool_folder_under_a_running_store(site):
    server, engine = site.start_server(NUM_SLOTS), site.start_engine("engine")
    engine.arm("store.half", Action.STOP)
    engine.tell(c.Store(NAMES))
    assert engine.wait_for_fault(Action.STOP)
    shutil.rmtree(site.folder)
    server.cycle()
    engine.resume()
    assert engine.answer() == c.StoreReport(["failed"], [0])
    engine.wait_joined()
    assert engine.store(NAMES).num_stored == [3]
    assert engine.read(NAMES) == 3
    server.settle()


def test_ten_thousand_aborted_requests_leave_no_lock(site):
    server, engine = site.start_server(NUM_SLOTS, lock_fraction=1000.0), site.start_engine("engine")
    engine.store(NAMES)
    done = engine.ask(c.AbortMany(10_000, NAMES), 120.0)
    assert done.count == 6_667
    report = server.cycle()
    assert report.num_locked == 3
    assert report.num_sessions >= 3_333
    report = server.cycle(41.0)
    assert (report.num_locked, report.num_sessions, report.num_objects) == (0, 0, 3)
    assert engine.read(NAMES) == 3


def test_silent_engine_loses_its_locks_and_comes_back(site):
    server, engine, other = site.start_server(NUM_SLOTS), site.start_engine("engine"), site.start_engine("other")
    engine.store(NAMES)
    looked = engine.look("r", NAMES)
    engine.stop()
    assert server.cycle(61.0).num_locked == 0
    other.wait_joined()
    engine.resume()
    assert engine.load(looked) == c.LoadReport(True, "", 0)
    engine.wait_joined()
    assert engine.read(NAMES) == 3
    server.settle()


@pytest.mark.skipif(not can_make_pid_namespaces(), reason="this machine allows no new PID namespace")
@pytest.mark.parametrize("action", [Action.KILL, Action.STOP])
def test_writer_in_another_pid_namespace(site, action):
    """Death is seen, and being stopped is not taken for death, although the pids mean nothing to the server."""
    server, other = site.start_server(NUM_SLOTS), site.start_engine("other")
    victim = site.start_engine("victim", in_pid_namespace=True)
    victim.arm("store.half", action)
    victim.tell(c.Store(NAMES))
    assert victim.wait_for_fault(action)
    report = server.cycle(21.0)
    assert report.num_quarantined == (0 if action is Action.KILL else 3)
    assert other.store(NAMES).num_stored == [3]
    if action is Action.STOP:
        victim.resume()
        assert victim.answer() == c.StoreReport(["failed"], [0])
    assert other.read(NAMES) == 3
    assert server.settle().num_objects == 3
