"""A frozen engine: what L1 holds and its order stay as they are, whatever is asked of it."""

from __future__ import annotations

import pathlib
import threading

import pytest

from lmcache.embedded.jobs import StoreJob
from lmcache.errors import LMCacheError
from tests.conftest import FakeClock
from tests.embedded.site import PATIENCE_S, ROOT, Site, blocks_of, config_of, digests_of, opened
from tests.embedded.tiers import DISK, REMOTE, Gate, disk, held_by, look_up_in_vain, looking_up, memory


def test_traffic_leaves_keys_and_order_as_they_are(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Hits, misses, stores, tiers that have more: L1 answers from what it has, and nothing is left of it."""
    with opened(pool_folder, config_of(8, backends=(disk(tmp_path),))) as site:
        site.store("abcdef")
        site.wait_until_stored()
        site.engine.l1.delete_keys([site.key("e"), site.key("f")], force=False)
        files = sorted(tmp_path.rglob("*.data"))
        site.engine.freeze(True)
        before = site.l1_order()
        assert site.engine.is_frozen
        assert site.lookup("cdab") == 4
        assert site.retrieve("cdab") == ""
        assert site.lookup("abcdef", wait_s=PATIENCE_S) == 4
        site.engine.release(["lookup"])
        assert site.lookup("ba", "expired") == 2
        assert site.store("ghijklmn") == ""
        assert site.retrieve("e") == "it was evicted or cleared"
        assert site.engine.retrieve_mock(range(32)) == 0
        assert site.engine.store_mock(range(32)) == 0
        site.engine.release(["expired"])
        assert site.l1_order() == before
        assert sorted(tmp_path.rglob("*.data")) == files
        site.engine.l1.check_integrity()


def test_what_was_locked_before_is_in_its_place_after(pool_folder: pathlib.Path) -> None:
    """A lock from before the freeze ends within it, one from within it ends after: both protect from eviction."""
    with opened(pool_folder, config_of(4)) as site:
        site.store("abcd")
        site.lookup("a", "early")
        site.engine.freeze(True)
        before = site.l1_order()
        site.lookup("b", "late")
        site.engine.release(["early"])
        assert site.l1_order() == before
        site.engine.freeze(False)
        assert site.store("xyz") == "xyz"
        assert site.retrieve("b", "late") == ""
        assert site.store("uv") == "uv"
        assert site.lookup("a") == 0


def test_a_store_under_way_does_not_arrive(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """No digest is answered, so no event follows; nothing is written below either."""
    steps = Freezer()
    with opened(pool_folder, config_of(backends=(disk(tmp_path),)), steps=steps) as site:
        site.store("a")
        site.wait_until_stored()
        steps.site = site
        assert site.store("bc") == ""
        assert (site.num_objects, held_by(site, DISK)) == (1, "a")
        site.engine.freeze(False)
        assert site.store("bc") == "bc"


class Freezer:
    """Freezes the engine when a store has copied its first chunk."""

    site: Site | None = None

    def reached(self, step: str) -> None:
        if step == "store.copied" and self.site is not None:
            self.site.engine.freeze(True)
            self.site = None


def test_a_load_under_way_does_not_arrive(pool_folder: pathlib.Path) -> None:
    """Though somebody waits for it still."""
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "load")
        with looking_up(site, "ab", gate) as found:
            site.engine.freeze(True)
            gate.open()
        assert found == [0]
        check_nothing_arrived(site)


def test_a_load_that_is_late_does_not_arrive(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    """Nobody waits for it any more."""
    with opened(pool_folder, config_of(backends=(memory(),)), clock=clock) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "load")
        look_up_in_vain(site, "ab", gate, clock)
        site.engine.freeze(True)
        gate.open()
        check_nothing_arrived(site)


def check_nothing_arrived(site: Site) -> None:
    site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
    assert (site.num_objects, site.num_locked) == (0, 0)
    site.engine.freeze(False)
    assert site.lookup("ab", wait_s=PATIENCE_S) == 2


def test_what_waits_for_a_tier_waits_on(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(64, backends=(memory(),))) as site:
        gate = Gate(site, REMOTE, "store")
        site.store("abcdefghijkl")
        assert gate.is_reached.wait(PATIENCE_S)
        freezing = threading.Thread(target=lambda: site.engine.freeze(True))
        freezing.start()
        site.wait_until(lambda: all(tier.route.is_frozen for tier in site.engine.storage.tiers()))
        gate.open()
        freezing.join()
        held = held_by(site, REMOTE)
        assert held != "abcdefghijkl"
        wait_for_a_round_of_stores(site)
        assert held_by(site, REMOTE) == held
        site.engine.freeze(False)
        site.wait_until(lambda: held_by(site, REMOTE) == "abcdefghijkl")


def wait_for_a_round_of_stores(site: Site) -> None:
    """One that began after this call, or later."""
    thread = site.loop("store")
    for num_runs in (thread.total_runs + 1, thread.total_runs + 2):
        thread.wake()
        site.wait_until(lambda: thread.total_runs >= num_runs)  # noqa: B023
    assert not site.engine.storage.stores.num_inflight


def test_nothing_is_read_from_files(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        site.engine.freeze(True)
        with pytest.raises(LMCacheError, match="frozen"):
            site.engine.load_fs_chunks(str(tmp_path / "config.yaml"), None)


def test_layers_of_a_store_under_way_do_not_arrive(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        job = StoreJob(ROOT, "", digests_of("a"), (blocks_of(0),))
        store = site.engine.begin_store(job)
        assert store is not None
        site.engine.freeze(True)
        assert site.engine.end_store(job, store) == ()
        assert site.engine.begin_store(job) is None
        assert site.num_objects == 0


def test_freezing_twice_is_freezing(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        site.engine.freeze(False)
        site.store("a")
        site.engine.freeze(True)
        site.engine.freeze(True)
        site.engine.freeze(False)
        assert not site.engine.is_frozen
        assert site.store("b") == "b"
