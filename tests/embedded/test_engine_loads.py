"""Loads that must fetch first, chunks that are not whole, lookups that nobody waits for."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lmcache.embedded.fetching import Wanted
from lmcache.embedded.jobs import Prompt, RetrieveJob, RetrievePart, StoreJob
from lmcache.testing.paged_memory import content_of, digest_of
from tests.conftest import FakeClock
from tests.embedded.site import (
    L1_BACKEND,
    PATIENCE_S,
    ROOT,
    Site,
    blocks_of,
    config_of,
    digests_of,
    opened,
    prompt_of,
)  # fmt: skip
from tests.embedded.tiers import REMOTE, Gate, memory


def test_a_load_fetches_what_l1_does_not_have(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("abcd")
        site.wait_until_stored()
        site.engine.l1.delete_keys([site.key("b"), site.key("c")], force=False)
        assert site.retrieve("abcd", "nobody looked up") == ""
        assert (site.num_objects, site.num_locked) == (4, 0)


@pytest.mark.parametrize("layerwise", [False, True])
def test_what_is_fetched_passes_where_l1_keeps_nothing(pool_folder: pathlib.Path, layerwise: bool) -> None:
    with opened(pool_folder, config_of(backends=(memory(),), keeps_l1=False)) as site:
        site.store("abc")
        site.wait_until(lambda: site.num_objects == 0)
        if layerwise:
            parts = tuple(RetrievePart(digest, 0, blocks_of(i)) for i, digest in enumerate(digests_of("abc")))
            load = site.engine.begin_retrieve(RetrieveJob("lookup", ROOT, "", parts))
            for layer in range(4):
                load.copy(layer)
            assert load.end(True) == ""
            assert site.num_wrong("abc", [blocks_of(i) for i in range(3)]) == 0
        else:
            assert site.retrieve("abc") == ""
        assert (site.num_objects, site.num_locked) == (0, 0)


def test_a_tier_that_is_too_slow_is_a_miss(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),), blocking_timeout_s=0.05)) as site:
        site.store("ab")
        site.wait_until_stored()
        site.engine.l1.delete_keys([site.key("b")], force=False)
        gate = Gate(site, REMOTE, "load")
        assert site.retrieve("ab") == "it was evicted or cleared"
        assert site.num_locked == 0
        assert not gate.was_passed
        gate.open()
        site.engine.follow(dataclasses.replace(site.engine.config, blocking_timeout_s=20.0))
        assert site.retrieve("ab") == ""


@pytest.mark.parametrize("keeps_l1", [True, False])
def test_a_load_may_be_larger_than_the_pool(pool_folder: pathlib.Path, keeps_l1: bool) -> None:
    """Nobody who looked up in the tiers alone knows how large a rank's pool is."""
    with opened(pool_folder, config_of(4, backends=(memory(),), keeps_l1=keeps_l1)) as site:
        for names in ("abc", "def", "ghi"):
            site.store(names)
            site.wait_until_stored()
        assert site.retrieve("abcdefghi", "nobody looked up") == ""
        assert site.num_locked == 0
        assert site.retrieve("abcdefghix", "nobody looked up") == "it was evicted or cleared"
        assert site.num_locked == 0


def test_an_object_of_another_size_is_in_nobodys_way_for_long(pool_folder: pathlib.Path) -> None:
    """It may come from files that were written with another serde."""
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        assert site.engine._admission.admit(site.key("a"), memoryview(bytes(site.engine.chunk_bytes // 2)))
        assert site.lookup("ab") == 1
        assert site.retrieve("a") == "its place does not fit this engine"
        assert site.num_locked == 0
        assert site.lookup("ab", wait_s=PATIENCE_S) == 2
        assert site.retrieve("ab") == ""


@pytest.mark.parametrize("layerwise", [False, True])
def test_loads_of_one_step_wait_for_tiers_together(
    pool_folder: pathlib.Path, clock: FakeClock, layerwise: bool
) -> None:
    """However many they are, a tier that hangs costs a step its time once."""
    with opened(pool_folder, config_of(backends=(memory(),), blocking_timeout_s=0.1), clock=clock) as site:
        site.store("abc")
        site.wait_until_stored()
        site.clear_l1()
        asked_s: list[float] = []

        def fetch_in_vain(_: Wanted, wait_s: float, *more: Any) -> None:
            asked_s.append(wait_s)
            clock.advance(wait_s)

        def load(name: str) -> str:
            if not layerwise:
                return site.retrieve(name, name)
            part = RetrievePart(digest_of(name), 0, blocks_of(0))
            return site.engine.begin_retrieve(RetrieveJob(name, ROOT, "", (part,))).end(False)

        site.engine._fetcher.fetch = fetch_in_vain  # type: ignore[method-assign, assignment]
        site.engine.begin_step()
        assert all(load(name) for name in "abc")
        assert asked_s == [pytest.approx(0.1)]
        site.engine.begin_step()
        assert load("b")
        assert asked_s == [pytest.approx(0.1)] * 2
        assert site.num_locked == 0


def test_a_chunk_that_is_nowhere_fails_its_load(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        assert site.retrieve("abx") == "it was evicted or cleared"
        assert site.num_locked == 0


@pytest.mark.parametrize("is_read_by_a_lookup", [False, True])
def test_a_chunk_that_is_not_whole_comes_back(pool_folder: pathlib.Path, is_read_by_a_lookup: bool) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        rows = (blocks_of(0), blocks_of(1)[:3])
        for name, row in zip("at", rows, strict=True):
            site.memory.pages[:, list(row)] = content_of(digest_of(name), 0)[:, : len(row)]
        digests = digests_of("at")
        assert site.engine.store(StoreJob(ROOT, "", digests, rows)) == digests
        site.wait_until_stored()
        site.clear_l1()
        if is_read_by_a_lookup:
            assert site.engine.lookup("lookup", Prompt(ROOT, "", digests, tail_blocks=3), 10.0) == 2
        parts = (RetrievePart(digests[0], 0, (20, 21, 22, 23)), RetrievePart(digests[1], 0, (30, 31, 32), 3))
        assert site.engine.retrieve(RetrieveJob("lookup", ROOT, "", parts)) == ""
        assert (site.memory.pages[:, 30:33] == content_of(digests[1], 0)[:, :3]).all()
        assert site.num_locked == 0


class Answers:
    """`on_answer` is called with each."""

    def __init__(self, on_answer: Callable[[], object] = lambda: None) -> None:
        self.found: list[int] = []
        self.come = threading.Event()
        self._on_answer = on_answer

    def __call__(self, num_chunks: int) -> None:
        self.found.append(num_chunks)
        self._on_answer()
        self.come.set()


def asked_later(site: Site, names: str, wait_s: float, lookup_id: str = "lookup") -> Answers:
    answers = Answers()
    site.engine.lookup_later(lookup_id, prompt_of(names), wait_s, answers)
    return answers


def test_a_later_lookup_is_answered_once(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("abc")
        site.wait_until_stored()
        assert asked_later(site, "abcd", 0.0).found == [3]
        site.clear_l1()
        site.engine.release(["lookup"])
        site.engine.clear([L1_BACKEND])
        gate = Gate(site, REMOTE, "load")
        answers = asked_later(site, "abcd", 10.0)
        assert answers.found == []
        gate.open()
        assert answers.come.wait(PATIENCE_S)
        assert answers.found == [3]
        assert site.retrieve("abc") == ""
        assert site.num_locked == 0


def test_a_later_lookup_ends_by_itself(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.engine.l1.delete_keys([site.key("b")], force=False)
        gate = Gate(site, REMOTE, "lookup")
        answers = asked_later(site, "ab", 0.05)
        assert answers.come.wait(PATIENCE_S)
        assert answers.found == [1]
        gate.open()


def test_release_ends_a_lookup_under_way(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.store("ab")
        site.wait_until_stored()
        site.clear_l1()
        gate = Gate(site, REMOTE, "load")
        answers = asked_later(site, "ab", 20.0)
        assert gate.is_reached.wait(PATIENCE_S)
        site.engine.release(["lookup"])
        assert answers.found == [0]
        gate.open()
        site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
        assert site.num_locked == 0
        assert answers.found == [0]


def test_close_answers_whoever_waits(pool_folder: pathlib.Path) -> None:
    site = Site(pool_folder, config_of(backends=(memory(),), drain_timeout_s=0.1))
    site.store("ab")
    site.wait_until_stored()
    site.clear_l1()
    gate = Gate(site, REMOTE, "lookup")
    answers = Answers(gate.open)  # before that, the tier could not be closed
    site.engine.lookup_later("lookup", prompt_of("ab"), 60.0, answers)
    assert gate.is_reached.wait(PATIENCE_S)
    site.engine.close()
    assert answers.found == [0]
    assert asked_later(site, "ab", 0.0, "bad salt").found == [0]


def test_a_later_lookup_that_cannot_be_is_answered_too(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        answers = Answers()
        site.engine.lookup_later("lookup", prompt_of("a", salt="a@b"), 1.0, answers)
        assert answers.found == [0]
