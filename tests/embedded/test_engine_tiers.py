"""An embedded engine with tiers: what L1 lost comes back, in time or not at all."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.errors import ConfigError
from tests.conftest import new_pool_folder
from tests.embedded.site import PATIENCE_S, config_of, opened
from tests.embedded.tiers import REMOTE, Gate, disk, memory


def test_what_l1_lost_comes_back_from_a_tier_and_stays(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        assert site.store("abcd") == "abcd"
        site.wait_until_stored()
        site.clear_l1()
        assert site.lookup("abcde", wait_s=0.0) == 0
        assert site.lookup("abcde", wait_s=PATIENCE_S) == 4
        assert site.retrieve("abcd") == ""
        assert (site.num_locked, site.num_objects) == (0, 4)
        assert site.engine.usage()["LocalDiskBackend"] > 4 * site.engine.chunk_bytes


def test_another_engine_finds_what_this_one_wrote(tmp_path: pathlib.Path) -> None:
    """A rank of the same bytes reads them and writes none; another rank does not find them."""
    config = config_of(backends=(disk(tmp_path),))
    with opened(new_pool_folder(), config) as site:
        site.store("ab")
        site.wait_until_stored()
    num_files = len(list(tmp_path.rglob("*")))
    with opened(new_pool_folder(), config, rank=1, source_rank=0) as site:
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        assert site.retrieve("ab") == ""
        assert site.store("cd") == "cd"
        site.wait_until_stored()
        assert site.engine.usage()["LocalCPUBackend"] == 4 * site.engine.chunk_bytes
    assert len(list(tmp_path.rglob("*"))) == num_files
    with opened(new_pool_folder(), config, rank=1, source_rank=1) as site:
        assert site.lookup("ab", wait_s=PATIENCE_S) == 0


def test_l1_that_keeps_nothing_is_a_way_through(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),), keeps_l1=False)) as site:
        assert site.store("abc") == "abc"
        site.wait_until(lambda: site.num_objects == 0)
        assert site.lookup("abc", wait_s=PATIENCE_S) == 3
        assert site.num_locked == 3
        assert site.retrieve("abc") == ""
        assert site.num_objects == 0


def test_l1_that_keeps_nothing_without_tiers_stores_nothing(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(keeps_l1=False)) as site:
        assert site.store("abc") == ""
        assert site.lookup("abc", wait_s=PATIENCE_S) == 0


def test_a_slow_tier_costs_no_more_than_the_time_for_it(pool_folder: pathlib.Path) -> None:
    """What it brings later is there for whoever asks again."""
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("abc")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "lookup")
        assert site.lookup("abc", wait_s=0.05) == 0
        assert site.num_locked == 0
        assert not gate.was_passed
        gate.open()
        assert site.lookup("abc", wait_s=PATIENCE_S) == 3
        assert site.retrieve("abc") == ""


def test_tier_that_cannot_be_made_is_named(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(backends=(disk(tmp_path / "file" / "below"),))
    with pytest.raises(ConfigError, match=r"^LocalDiskBackend: "), opened(pool_folder, config):
        pass
