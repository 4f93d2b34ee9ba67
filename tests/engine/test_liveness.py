"""Liveness and registration anew: silence ends locks, only proof of death frees writes."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.engine.management import LivenessConfig
from lmcache.memory.client_lock import lock_path
from lmcache.protocol.messages import Ping
from tests.conftest import FakeClock
from tests.engine.conftest import DIGESTS, Harness, open_engine, slots_of

_HOLD = """
import pathlib, sys
from lmcache.memory.client_lock import ClientLock
locks = [ClientLock(pathlib.Path(sys.argv[1]), int(uid)) for uid in sys.argv[2:]]
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def alive(joined: Harness, start_child):
    """Worker 1 and scheduler 100 live in a process of their own."""
    child = start_child(_HOLD, str(joined.engine.pool.files.folder), "1", "100")
    assert child.read_line() == "held"
    return child


def ping(harness: Harness, uid: int) -> None:
    assert harness.engine.management.ping(harness.client(uid), Ping(0)).ok


def silent_after(harness: Harness, seconds: float) -> int:
    harness.clock.advance(seconds)
    return int(str(harness.engine.reap_cycle()["silent"]))


def test_who_never_pinged_has_an_hour(joined: Harness) -> None:
    assert silent_after(joined, 3600) == 0
    assert silent_after(joined, 1) == 2
    assert not joined.engine.registry.clients


def test_who_has_pinged_has_two_minutes(joined: Harness) -> None:
    ping(joined, 1)
    assert silent_after(joined, 120) == 0
    assert silent_after(joined, 1) == 1
    assert list(joined.engine.registry.clients) == [100]
    assert joined.engine.metrics.workers_reaped.value("silent") == 1


@pytest.mark.parametrize("sign_of_life", ["ping", "request", "register"])
def test_every_sign_of_life_counts(joined: Harness, sign_of_life: str) -> None:
    ping(joined, 1)
    for _ in range(3):
        assert silent_after(joined, 119) == 0
        if sign_of_life == "ping":
            ping(joined, 1)
        elif sign_of_life == "request":
            joined.engine.client(1)
        else:
            joined.worker()
    assert joined.client(1).has_pinged, "registering again is a refresh only"


def test_a_prober_is_answered_and_not_tracked(joined: Harness) -> None:
    assert joined.engine.management.ping(None, Ping(None)).ok
    assert set(joined.engine.registry.clients) == {1, 100}
    assert not joined.client(1).has_pinged


def test_a_silent_client_loses_its_locks_but_not_its_writes(joined: Harness, alive) -> None:
    joined.store(DIGESTS[:2])
    joined.lookup(DIGESTS[:2])
    reserved = joined.reserve(DIGESTS[2:4])
    assert silent_after(joined, 3601) == 2
    report = joined.l1_report
    assert report["read_locked_count"] == 0
    assert report["write_locked_count"] == 2
    joined.worker(writing=slots_of(reserved), attempt=2)
    joined.scheduler()
    assert joined.commit(reserved).num_accepted == 2


def test_a_dead_client_loses_its_writes_too(joined: Harness, alive) -> None:
    joined.store(DIGESTS[:2])
    joined.lookup(DIGESTS[:2])
    joined.reserve(DIGESTS[2:4])
    assert joined.engine.reap_cycle() == {"dead": 0, "silent": 0}
    alive.kill()
    assert joined.engine.reap_cycle() == {"dead": 2, "silent": 0}
    report = joined.l1_report
    assert report["read_locked_count"] == report["write_locked_count"] == report["quarantined_count"] == 0
    assert not joined.engine.registry.clients
    assert report["total_object_count"] == 2
    assert not lock_path(joined.engine.pool.files.folder, 1).exists()
    assert joined.engine.reap_cycle() == {"dead": 0, "silent": 0}


def test_a_writer_that_left_or_whose_write_was_hidden_is_still_waited_for(joined: Harness, alive) -> None:
    joined.reserve(DIGESTS[:2])
    joined.engine.clear(force=True)
    joined.engine.management.unregister(joined.engine.pool, 1)
    joined.engine.reap_cycle()
    assert joined.l1_report["quarantined_count"] == 2
    alive.kill()
    joined.engine.reap_cycle()
    assert joined.l1_report["quarantined_count"] == joined.l1_report["memory_used_bytes"] == 0


def test_a_client_without_a_lock_file_is_never_proven_dead(joined: Harness) -> None:
    joined.reserve(DIGESTS[:2])
    joined.engine.reap_cycle()
    assert joined.l1_report["write_locked_count"] == 2


def test_registering_anew_frees_what_the_client_no_longer_writes(joined: Harness) -> None:
    kept, lost = joined.reserve(DIGESTS[:1], 1), joined.reserve(DIGESTS[1:3], 2)
    joined.worker(writing=slots_of(kept), attempt=2)
    assert joined.l1_report["write_locked_count"] == 1
    assert joined.commit(kept, 1).num_accepted == 1
    assert joined.commit(lost, 2).num_accepted == 0


def test_a_registration_that_arrives_late_frees_nothing(joined: Harness) -> None:
    joined.worker(attempt=5)
    reserved = joined.reserve(DIGESTS[:2])
    joined.worker(attempt=4)
    assert joined.commit(reserved).num_accepted == 2


def test_liveness_can_be_switched_off(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    harness = open_engine(pool_folder, clock, liveness=LivenessConfig(0.0))
    harness.worker()
    assert silent_after(harness, 10**6) == 0
    harness.engine.close(keep=False)


def test_a_pool_that_vanished_is_made_anew_under_another_boot_id(joined: Harness) -> None:
    joined.store(DIGESTS[:2])
    boot_id, pool_id = joined.engine.boot_id, joined.engine.pool.files.pool_id
    for path in pathlib.Path(joined.engine.pool.files.folder).glob("[ip]*"):
        path.unlink()
    joined.engine.reap_cycle()
    assert joined.engine.boot_id != boot_id
    assert joined.engine.pool.files.pool_id != pool_id
    assert not joined.engine.registry.clients
    assert joined.engine.metrics.pools_lost.value() == 1
    joined.engine.pool.wait_until_populated(30)
    joined.worker(attempt=2)
    joined.scheduler()
    assert joined.lookup(DIGESTS[:2]).num_chunks == 0
    assert joined.store(DIGESTS[:2]) == 2
