"""The scheduler's own engine: what it counts is what workers' tiers hold, and it changes none of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import pytest

from lmcache.core.keys import make_kv_rank
from lmcache.embedded.config import EmbeddedConfig
from lmcache.embedded.tier_engine import TierEngine
from lmcache.errors import KeyFormatError, LMCacheError, UnknownBackendError
from tests.conftest import new_pool_folder
from tests.embedded.site import PATIENCE_S, Site, backend, config_of, opened, prompt_of
from tests.embedded.tiers import DISK, REMOTE, Gate, disk, memory

RANKS = [(make_kv_rank(2, rank, 2, rank), 0) for rank in range(2)]


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """A folder of each rank, one that they share."""
    return [tmp_path / "one", tmp_path / "two", tmp_path / "shared"]


def config_for(folders: list[pathlib.Path], rank: int) -> EmbeddedConfig:
    return config_of(backends=(disk(folders[rank]), disk(folders[2], REMOTE)))


@pytest.fixture
def workers(folders: list[pathlib.Path]) -> Iterator[list[Site]]:
    with (
        opened(new_pool_folder(), config_for(folders, 0), rank=0, source_rank=0) as one,
        opened(new_pool_folder(), config_for(folders, 1), rank=1, source_rank=1) as two,
    ):
        yield [one, two]


@pytest.fixture
def engine(folders: list[pathlib.Path], workers: list[Site]) -> Iterator[TierEngine]:
    engine = TierEngine([config_for(folders, rank) for rank in range(2)], "model", RANKS)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()
        engine.close()


def store(workers: list[Site], names: str) -> None:
    for site in workers:
        site.store(names)
        site.wait_until_stored()


def test_counts_what_every_rank_has_in_some_tier(workers: list[Site], engine: TierEngine) -> None:
    assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 0
    store(workers, "abcdefgh")
    store(workers[:1], "i")
    assert engine.count_leading(prompt_of("abcdefghij"), PATIENCE_S) == 8
    assert engine.count_leading(prompt_of("xab"), PATIENCE_S) == 0
    assert engine.count_leading(prompt_of(""), PATIENCE_S) == 0
    workers[1].engine.clear([REMOTE])
    assert engine.count_leading(prompt_of("abcdefghij"), PATIENCE_S) == 8
    workers[1].engine.clear([DISK])
    assert engine.count_leading(prompt_of("abcdefghij"), PATIENCE_S) == 0
    with pytest.raises(KeyFormatError):
        engine.count_leading(prompt_of("a", salt="a@b"), PATIENCE_S)


def test_tiers_that_are_the_same_are_opened_once(engine: TierEngine) -> None:
    assert engine.backends() == {DISK: "FSL2Adapter", REMOTE: "FSL2Adapter"}
    assert len(engine._backends.tiers(DISK)) == 2
    assert len(engine._backends.tiers(REMOTE)) == 1


def test_it_is_none_of_the_folders_servers(
    workers: list[Site], engine: TierEngine, folders: list[pathlib.Path]
) -> None:
    store(workers, "ab")
    assert len(list((folders[2] / ".lmcache" / "servers").iterdir())) == 2
    assert len(list((folders[0] / ".lmcache" / "servers").iterdir())) == 1
    before = sorted(folders[0].parent.rglob("*"))
    for _, tier in engine._backends.tiers():
        tier.adapter.tick()
        assert tier.adapter.evict(1 << 30, 100) == (0, 0)
    assert sorted(folders[0].parent.rglob("*")) == before


def test_operators_take_backends_out(workers: list[Site], engine: TierEngine) -> None:
    store(workers, "abc")
    engine.bypass(DISK, True)
    assert engine.count_leading(prompt_of("abc"), PATIENCE_S) == 3
    engine.bypass(REMOTE, True)
    assert engine.count_leading(prompt_of("abc"), PATIENCE_S) == 0
    engine.bypass(DISK, False)
    assert engine.count_leading(prompt_of("abc"), PATIENCE_S) == 3
    engine.freeze(True)
    assert (engine.is_frozen, engine.count_leading(prompt_of("abc"), PATIENCE_S)) == (True, 0)
    engine.freeze(False)
    engine.close_backend(DISK)
    engine.bypass(REMOTE, False)
    assert engine.count_leading(prompt_of("abc"), PATIENCE_S) == 3
    assert engine.create_backends() == {DISK: "FSL2Adapter"}
    assert engine.recreate_backend(REMOTE) == {REMOTE: "FSL2Adapter"}
    with pytest.raises(UnknownBackendError, match="Available: \\['LocalDiskBackend', 'RemoteBackend'\\]"):
        engine.bypass("LocalCPUBackend", True)


def test_clear_is_done_on_request(workers: list[Site], engine: TierEngine) -> None:
    store(workers, "ab")
    assert engine.clear([REMOTE]) == 4
    assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 2
    assert engine.clear() == 4
    assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 0


def test_what_needs_pages_is_refused(engine: TierEngine) -> None:
    for act in (engine.store_mock, engine.retrieve_mock, lambda _: engine.load_fs_chunks("", None)):
        with pytest.raises(LMCacheError, match="ask a worker's API"):
            act([1, 2])
    engine.set_hot_cache(True)
    assert engine.has_hot_cache is False


def test_follows_locations_and_tiers(workers: list[Site], engine: TierEngine, folders: list[pathlib.Path]) -> None:
    store(workers, "ab")
    configs = [dataclasses.replace(config_for(folders, rank), retrieve_locations=("Nobody",)) for rank in range(2)]
    engine.follow(configs)
    assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 0
    engine.follow([config_of(backends=(disk(folders[2], REMOTE),))] * 2)
    assert list(engine.backends()) == [REMOTE]
    assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 2


def test_a_folder_that_workers_make_later_is_found_then(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache.embedded.tier_engine.OPEN_PATIENCE_S", 0.01)
    config = config_of(backends=(disk(tmp_path / "later"),))
    engine = TierEngine([config], "model", RANKS[:1])
    engine.start()
    assert engine.count_leading(prompt_of("ab"), 1.0) == 0
    assert not (tmp_path / "later").exists()
    with opened(new_pool_folder(), config) as site:
        store([site], "ab")
        site.wait_until(lambda: engine.count_leading(prompt_of("ab"), 1.0) == 2)
    engine.close()


def test_a_tier_that_is_slow_counts_as_empty() -> None:
    engine = TierEngine([config_of(backends=(memory(), memory(DISK)))], "model", RANKS[:1])
    engine.start()
    gate = Gate(engine, REMOTE, "lookup")
    assert engine.count_leading(prompt_of("ab"), 0.05) == 0
    assert not gate.was_passed
    gate.open()
    engine.close()


@pytest.mark.parametrize("is_inside_another", [False, True])
def test_its_end_leaves_what_workers_keep_for_their_own_lifetime(
    tmp_path: pathlib.Path, is_inside_another: bool
) -> None:
    tier: dict[str, object] = {"type": "fs", "base_path": str(tmp_path), "persist_enabled": False}
    if is_inside_another:
        tier = {"type": "fault_inject", "inner": tier}
    config = config_of(backends=(backend(REMOTE, **tier),))
    with opened(new_pool_folder(), config) as site:
        store([site], "ab")
        engine = TierEngine([config], "model", RANKS[:1])
        engine.start()
        assert engine.count_leading(prompt_of("ab"), PATIENCE_S) == 2
        engine.close()
        site.clear_l1()
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
    assert not list(tmp_path.rglob("*.data"))
