"""Backends taken out of lookups, loads and stores, by an operator or by the configuration."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from lmcache.errors import UnknownBackendError
from tests.conftest import FakeClock
from tests.embedded.site import L1_BACKEND, PATIENCE_S, config_of, opened
from tests.embedded.tiers import DISK, REMOTE, Gate, disk, held_by, look_up_in_vain, memory


def test_a_bypassed_tier_is_out_of_everything(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory()))) as site:
        site.store("a")
        site.wait_until_stored()
        assert site.engine.bypass(REMOTE, True) is False
        assert site.engine.bypass(REMOTE, True) is True
        assert site.engine.bypassed() == [REMOTE]
        site.store("b")
        site.wait_until_stored()
        assert (held_by(site, REMOTE), held_by(site, DISK)) == ("a", "ab")
        site.engine.bypass(DISK, True)
        site.clear_l1()
        assert site.lookup("ab", wait_s=PATIENCE_S) == 0
        assert site.engine.bypass(REMOTE, False) is True
        assert site.lookup("ab", wait_s=PATIENCE_S) == 1
        assert site.retrieve("a") == ""


def test_stores_that_wait_already_are_not_written_there(pool_folder: pathlib.Path) -> None:
    """The one that is being written may end."""
    with opened(pool_folder, config_of(32, backends=(memory(),))) as site:
        gate = Gate(site, REMOTE, "store")
        site.store("abcdefghijklmnop")
        assert gate.is_reached.wait(PATIENCE_S)
        site.engine._backends.change(bypassed=frozenset({REMOTE}))
        gate.open()
        site.wait_until_stored()
        held = held_by(site, REMOTE)
        assert len(held) <= 4  # as many as there are threads
        site.engine.bypass(REMOTE, False)
        site.loop("store").wake()
        site.wait_until_stored()
        assert held_by(site, REMOTE) == held
        assert site.num_objects == 16


def test_l1_bypassed_keeps_what_it_has_and_gets_nothing(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.engine.bypass(L1_BACKEND, True)
        assert site.lookup("ab") == 0
        assert site.store("c") == "c"
        site.wait_until(lambda: held_by(site, DISK) == "abc" and site.num_objects == 2)
        assert site.lookup("abc", wait_s=PATIENCE_S) == 3
        assert site.retrieve("abc") == ""
        assert site.num_objects == 2
        site.engine.clear([DISK])
        assert site.lookup("abc", wait_s=PATIENCE_S) == 0
        # What L1 alone has is stored below, since nobody finds it here.
        site.store("ab")
        site.wait_until(lambda: held_by(site, DISK) == "ab")
        site.engine.bypass(L1_BACKEND, False)
        assert site.lookup("ab") == 2


def test_unknown_names_are_told_with_the_known(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        for act in (
            site.engine.close_backend,
            site.engine.recreate_backend,
            lambda name: site.engine.bypass(name, True),
        ):
            with pytest.raises(UnknownBackendError) as refusal:
                act("FooBackend")
            assert str(refusal.value) == (
                "Backend 'FooBackend' not found. Available: ['LocalCPUBackend', 'RemoteBackend']"
            )


def test_a_bypass_outlives_recreation_and_reaches_clear(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.engine.bypass(DISK, True)
        assert site.engine.recreate_backend(DISK) == {DISK: "FSL2Adapter"}
        assert site.engine.bypassed() == [DISK]
        site.wait_until(lambda: held_by(site, DISK) == "ab")
        site.clear_l1()
        assert site.lookup("ab", wait_s=PATIENCE_S) == 0
        assert site.engine.clear([DISK]) == 2
        assert held_by(site, DISK) == ""
        # A closed one may be put back in before it is opened again.
        site.engine.close_backend(DISK)
        assert site.engine.bypass(DISK, False) is True


def test_stores_go_to_the_store_location_alone(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(backends=(disk(tmp_path), memory()), store_location=REMOTE)
    with opened(pool_folder, config) as site:
        assert site.store("ab") == "ab"
        site.wait_until(lambda: held_by(site, REMOTE) == "ab" and not site.num_objects)
        assert held_by(site, DISK) == ""
        site.engine.follow(dataclasses.replace(config, store_location=L1_BACKEND))
        site.store("c")
        site.wait_until_stored()
        assert (held_by(site, REMOTE), held_by(site, DISK), site.num_objects) == ("ab", "", 1)
        site.engine.follow(dataclasses.replace(config, store_location="FooBackend"))
        assert site.store("d") == ""


def test_lookups_count_the_retrieve_locations_alone(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(backends=(disk(tmp_path), memory()), retrieve_locations=(DISK,))
    with opened(pool_folder, config) as site:
        site.store("abc")
        site.wait_until_stored()
        assert site.num_objects == 3
        site.engine.clear([DISK])
        assert site.lookup("abc", wait_s=PATIENCE_S) == 0
        site.engine.follow(dataclasses.replace(config, retrieve_locations=(REMOTE,)))
        assert site.lookup("abc", wait_s=0.0) == 0
        assert site.lookup("abcd", wait_s=PATIENCE_S) == 3
        assert site.retrieve("abc") == ""
        site.engine.follow(dataclasses.replace(config, retrieve_locations=(L1_BACKEND,)))
        assert site.lookup("abc", wait_s=0.0) == 3
        site.engine.release(["lookup"])
        site.clear_l1()
        assert site.lookup("abc", wait_s=PATIENCE_S) == 0
        site.engine.follow(dataclasses.replace(config, retrieve_locations=None))
        assert site.lookup("abc", wait_s=PATIENCE_S) == 3


def test_what_arrives_late_does_not_stay_in_a_bypassed_l1(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    """Unlike in one that is in use."""
    with opened(pool_folder, config_of(backends=(memory(),)), clock=clock) as site:
        site.store("ab")
        site.wait_until_stored()
        for is_bypassed, num_kept in ((True, 0), (False, 2)):
            site.clear_l1()
            site.engine.bypass(L1_BACKEND, is_bypassed)
            gate = Gate(site, REMOTE, "load")
            look_up_in_vain(site, "ab", gate, clock)
            gate.open()
            site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
            assert site.num_objects == num_kept
