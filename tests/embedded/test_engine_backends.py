"""Tiers that come, go and change while an engine runs, and what is cleared where."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

import pytest

from lmcache.embedded.config import Backend
from lmcache.errors import ConfigError, LMCacheError
from lmcache.storage.breaker import BreakerConfig, BreakerState
from tests.conftest import FakeClock, new_pool_folder
from tests.embedded.site import L1_BACKEND, PATIENCE_S, backend, config_of, opened
from tests.embedded.tiers import DISK, REMOTE, adapter_of, disk, held_by, memory


def test_backends_are_named_in_the_order_of_search(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory()))) as site:
        expected = {L1_BACKEND: "L1Manager", DISK: "FSL2Adapter", REMOTE: "MockL2Adapter"}
        assert list(site.engine.backends().items()) == list(expected.items())
        site.engine.close_backend(DISK)
        assert list(site.engine.backends()) == [L1_BACKEND, REMOTE]
        assert site.engine.create_backends() == {DISK: "FSL2Adapter"}
        assert site.engine.create_backends() == {}
        assert list(site.engine.backends()) == [L1_BACKEND, DISK, REMOTE]
        assert list(site.engine.usage()) == [L1_BACKEND, DISK, REMOTE]


def test_the_first_in_the_order_of_search_is_loaded_from(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Also when it was opened last."""
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory()))) as site:
        site.store("a")
        site.wait_until_stored()
        site.engine.recreate_backend(DISK)
        site.wait_until(lambda: held_by(site, DISK) == "a")
        site.clear_l1()
        adapter_of(site, REMOTE).load = None  # type: ignore[method-assign, assignment]
        assert site.lookup("a", wait_s=PATIENCE_S) == 1


def test_a_closed_backend_is_used_no_more_and_comes_back(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.engine.close_backend(DISK)
        site.clear_l1()
        assert site.lookup("ab", wait_s=PATIENCE_S) == 0
        assert site.store("c") == "c"
        assert len(list(tmp_path.rglob("*.data"))) == 2
        site.engine.create_backends()
        site.wait_until(lambda: held_by(site, DISK) == "ab")
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2


def test_limits_of_failures_are_read_when_a_tier_is_opened(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(backends=(disk(tmp_path),))
    with opened(pool_folder, config) as site:
        site.engine.follow(dataclasses.replace(config, breaker=BreakerConfig(failures_max=1)))
        tier = site.engine._backends.tiers(DISK)[0][1]
        tier.breaker.failed("once")
        assert tier.breaker.state is BreakerState.CLOSED
        site.engine.recreate_backend(DISK)
        tier = site.engine._backends.tiers(DISK)[0][1]
        tier.breaker.failed("once")
        assert tier.breaker.state is BreakerState.OPEN


def test_l1_is_not_closed(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        for act in (site.engine.close_backend, site.engine.recreate_backend):
            with pytest.raises(ConfigError, match="LocalCPUBackend cannot be closed"):
                act(L1_BACKEND)


def test_a_changed_configuration_is_followed(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of()
    with opened(pool_folder, config) as site:
        site.store("a")
        site.engine.follow(dataclasses.replace(config, backends=(disk(tmp_path / "one"), memory())))
        assert list(site.engine.backends()) == [L1_BACKEND, DISK, REMOTE]
        site.wait_until(lambda: all(tier.is_usable for _, tier in site.engine._backends.tiers()))
        site.store("b")
        site.wait_until(lambda: (held_by(site, DISK), held_by(site, REMOTE)) == ("b", "b"))
        site.engine.follow(dataclasses.replace(config, backends=(memory(), disk(tmp_path / "two"))))
        assert list(site.engine.backends()) == [L1_BACKEND, REMOTE, DISK]
        assert (held_by(site, DISK), held_by(site, REMOTE)) == ("", "b")
        site.engine.follow(dataclasses.replace(config, backends=(memory(),)))
        assert list(site.engine.backends()) == [L1_BACKEND, REMOTE]
        with pytest.raises(LMCacheError):
            site.engine.recreate_backend(DISK)


def test_what_cannot_be_made_leaves_what_runs(
    pool_folder: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    config = config_of(backends=(disk(tmp_path / "good"),))
    with opened(pool_folder, config) as site:
        site.store("a")
        site.wait_until_stored()
        bad = dataclasses.replace(config, backends=(disk(tmp_path / "file"), memory()), lock_ttl_s=5.0)
        with caplog.at_level(logging.ERROR):
            site.engine.follow(bad)
        assert "LocalDiskBackend stays as it is: LocalDiskBackend: " in caplog.text
        assert "is not a directory" in caplog.text
        assert held_by(site, DISK) == "a"
        assert (REMOTE in site.engine.backends(), site.engine.locks.ttl_s) == (True, 5.0)
        with pytest.raises(ConfigError, match="not a directory"):
            site.engine.recreate_backend(DISK)
        assert held_by(site, DISK) == "a"


def test_what_an_operator_closed_stays_closed(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(backends=(disk(tmp_path / "one"),))
    with opened(pool_folder, config) as site:
        site.engine.close_backend(DISK)
        site.engine.follow(dataclasses.replace(config, lock_ttl_s=5.0))
        assert DISK not in site.engine.backends()
        site.engine.follow(dataclasses.replace(config, backends=(disk(tmp_path / "two"),)))
        assert DISK in site.engine.backends()


def test_another_order_of_eviction_knows_what_is_held(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(4)) as site:
        site.store("abcd")
        site.lookup("a")
        site.engine.follow(dataclasses.replace(site.engine.config, eviction_policy="MRU"))
        site.engine.l1.check_integrity()
        site.engine.follow(dataclasses.replace(site.engine.config, eviction_policy="none such"))
        assert site.store("e") == "e"
        # A prompt's head was used last of all, but it is locked: the next one goes.
        assert [site.lookup(name, "other") for name in "abcde"] == [1, 0, 1, 1, 1]


def test_another_order_of_eviction_of_a_tier_knows_what_it_holds(
    pool_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def evicting(policy: str) -> tuple[Backend, ...]:
        return (backend(DISK, type="fs", base_path=str(tmp_path), eviction={"eviction_policy": policy}),)

    with opened(pool_folder, config_of(backends=evicting("LRU"))) as site:
        site.store("abc")
        site.wait_until_stored()
        site.engine.follow(dataclasses.replace(site.engine.config, backends=evicting("FIFO")))
        assert adapter_of(site, DISK).eviction_policy == "FIFO"
        site.wait_until(lambda: held_by(site, DISK) == "abc")
        assert adapter_of(site, DISK).evict(1, 1)[0] == 1


def test_locations_that_are_nowhere_are_told(pool_folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(pool_folder, config_of(store_location="RemoteBackend-s3", retrieve_locations=(L1_BACKEND,))):
        assert "name RemoteBackend-s3; there are: LocalCPUBackend" in caplog.text


def test_times_are_followed(pool_folder: pathlib.Path, clock: FakeClock) -> None:
    with opened(pool_folder, config_of(lock_ttl_s=60.0, lock_check_interval_s=30.0), clock=clock) as site:
        config = site.engine.config
        site.store("a")
        site.engine.follow(dataclasses.replace(config, lock_ttl_s=5.0, lock_check_interval_s=0.01))
        site.lookup("a")
        clock.advance(6.0)
        site.wait_until(lambda: site.num_locked == 0)


def test_clear_counts_objects_over_the_backends_asked(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(disk(tmp_path), memory()))) as site:
        site.store("abc")
        site.wait_until_stored()
        assert site.engine.clear(["FooBackend"]) == 0
        assert site.engine.clear([REMOTE, L1_BACKEND]) == 6
        assert (held_by(site, DISK), site.num_objects) == ("abc", 0)
        (tmp_path / "notes.txt").write_text("mine")
        site.store("abc")
        site.wait_until_stored()
        assert site.engine.clear() == 9
        assert [path.name for path in tmp_path.rglob("*.*") if path.suffix in (".data", ".txt")] == ["notes.txt"]


def test_clear_spares_what_is_in_use(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.lookup("a")
        adapter_of(site, REMOTE).lookup([site.key("b")])
        assert site.engine.clear() == 2
        assert (site.num_objects, held_by(site, REMOTE)) == (1, "b")


def test_a_tier_that_fails_does_not_spare_the_others(pool_folder: pathlib.Path) -> None:
    broken = backend(
        "RemoteBackend-fault_inject", type="fault_inject", inner={"type": "memory", "max_size_gb": 0.01},
        rate=1.0, faults=["error"], operations=["delete"],
    )  # fmt: skip
    with opened(pool_folder, config_of(backends=(broken, memory()))) as site:
        site.store("ab")
        site.wait_until_stored()
        with pytest.raises(LMCacheError, match=r"removed 2 objects.*RemoteBackend-fault_inject: failed on purpose"):
            site.engine.clear([broken.name, REMOTE])
        assert held_by(site, REMOTE) == ""


def test_a_rank_that_does_not_write_a_tier_does_not_clear_it(tmp_path: pathlib.Path) -> None:
    config = config_of(backends=(Backend(DISK, disk(tmp_path).adapter),))
    with opened(new_pool_folder(), config) as site:
        site.store("ab")
        site.wait_until_stored()
    with opened(new_pool_folder(), config, rank=1, source_rank=0) as site:
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        assert site.retrieve("ab") == ""
        site.settle()
        assert site.engine.clear() == 2
        assert held_by(site, DISK) == "ab"
