"""What is at rest has nothing left to do: who waits for that finds neither a lock nor an object that is about to go."""

from __future__ import annotations

import pathlib

import pytest

from tests.embedded.site import PATIENCE_S, config_of, opened
from tests.embedded.tiers import memory


def test_prefetches_are_at_rest_once_all_is_unlocked(
    pool_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        prefetches, unlock, was_at_rest = site.engine.storage.prefetches, site.engine.l1.unlock, list[bool]()

        def unlock_and_look(places: list[object]) -> object:
            was_at_rest.append(prefetches.is_at_rest)
            return unlock(places)  # type: ignore[arg-type]

        monkeypatch.setattr(site.engine.l1, "unlock", unlock_and_look)
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        site.wait_until(lambda: prefetches.is_at_rest)
        assert was_at_rest == [False]


def test_prefetches_are_not_at_rest_while_they_have_not_heard(
    pool_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        prefetches = site.engine.storage.prefetches
        site.loop("prefetch").stop(PATIENCE_S)
        assert prefetches.is_at_rest
        assert site.lookup("ab", wait_s=0.01) == 0
        assert not prefetches.is_at_rest
        prefetches.cycle()
        site.wait_until(lambda: bool(prefetches.cycle()) and prefetches.is_at_rest)


def test_stores_are_over_once_l1_has_let_go(pool_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(pool_folder, config_of(backends=(memory(),), keeps_l1=False)) as site:
        stores, let_go, num_under_way = site.engine.storage.stores, site.engine.l1.let_go, list[int]()

        def look_and_let_go(places: list[object]) -> object:
            num_under_way.append(stores.num_inflight + stores.num_pending)
            return let_go(places)  # type: ignore[arg-type]

        monkeypatch.setattr(site.engine.l1, "let_go", look_and_let_go)
        site.store("a")
        site.wait_until_stored()
        assert num_under_way == [1]
        assert site.num_objects == 0
