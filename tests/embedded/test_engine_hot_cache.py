"""The hot cache off: L1 is empty but for what passes through; on again, it keeps what comes."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from tests.conftest import FakeClock
from tests.embedded.site import PATIENCE_S, Site, config_of, opened
from tests.embedded.tiers import DISK, REMOTE, Gate, disk, held_by, look_up_in_vain, looking_up, memory, slow


def test_off_clears_and_on_keeps_again(
    pool_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache.embedded.engine_operations._HAND_OVER_S", PATIENCE_S)
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        site.store("abc")
        site.engine.set_hot_cache(False)
        assert not site.engine.has_hot_cache
        assert (site.num_objects, held_by(site, DISK)) == (0, "abc")
        assert site.store("de") == "de"
        site.wait_until(lambda: held_by(site, DISK) == "abcde" and not site.num_objects)
        assert site.lookup("abcd", wait_s=PATIENCE_S) == 4
        assert site.retrieve("abcd") == ""
        assert site.num_objects == 0
        site.engine.set_hot_cache(True)
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        assert site.retrieve("ab") == ""
        assert site.num_objects == 2


def test_what_readers_have_goes_with_the_last_of_them(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        site.store("abc")
        site.lookup("ab", "one")
        site.lookup("a", "two")
        site.engine.set_hot_cache(False)
        assert site.num_objects == 2
        assert site.retrieve("ab", "one") == ""
        assert site.num_objects == 1
        site.engine.release(["two"])
        assert site.num_objects == 0
        assert site.store("d") == ""


class SwitchOff:
    """Switches the hot cache off when a store has copied its first chunk."""

    site: Site | None = None

    def reached(self, step: str) -> None:
        if step == "store.copied" and self.site is not None:
            self.site.engine.set_hot_cache(False)
            self.site = None


def test_a_store_under_way_does_not_remain(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It goes on to the tiers, if there are any."""
    for backends in ((disk(tmp_path),), ()):
        steps = SwitchOff()
        with opened(pool_folder, config_of(backends=backends), steps=steps) as site:
            steps.site = site
            site.store("abc")
            site.wait_until(lambda site=site: site.num_objects == 0)  # type: ignore[misc]
            assert not backends or held_by(site, DISK) == "abc"


def test_a_load_under_way_does_not_remain(pool_folder: pathlib.Path) -> None:
    """What arrives in time is there for its reader."""
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "load")
        with looking_up(site, "ab", gate) as found:
            site.engine.set_hot_cache(False)
            gate.open()
        assert found == [2]
        assert site.retrieve("ab") == ""
        site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
        assert site.num_objects == 0


def test_a_load_that_is_late_does_not_remain(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    """Nobody waits for it any more."""
    with opened(pool_folder, config_of(backends=(memory(),)), clock=clock) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "load")
        look_up_in_vain(site, "ab", gate, clock)
        site.engine.set_hot_cache(False)
        gate.open()
        site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
        assert site.num_objects == 0


def test_objects_that_no_tier_takes_do_not_remain(pool_folder: pathlib.Path) -> None:
    """A tier that fails, one that is removed while they wait for it."""
    with opened(pool_folder, config_of(backends=(slow("store", 0.2),), keeps_l1=False)) as site:
        site.store("abcdef")
        site.engine.close_backend(REMOTE)
        site.wait_until(lambda: site.num_objects == 0)


def test_the_setting_switches_it_too(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        site.store("a")
        site.engine.follow(dataclasses.replace(site.engine.config, keeps_l1=False))
        assert (site.num_objects, site.engine.has_hot_cache) == (0, False)
        # A change of something else does not undo what an operator has switched since.
        site.engine.set_hot_cache(True)
        site.engine.follow(dataclasses.replace(site.engine.config, lock_ttl_s=1.0))
        assert site.engine.has_hot_cache
