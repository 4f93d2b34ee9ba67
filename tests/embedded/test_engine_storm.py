"""A rank that stores and loads, lookups, and an operator who switches everything, all at once: no wrong byte, and
nothing is left behind."""

from __future__ import annotations

import pathlib
import random
import threading
from collections.abc import Callable, Sequence

from lmcache.embedded.jobs import RetrieveJob, RetrievePart
from lmcache.testing.paged_memory import CHUNK_SIZE, NUM_LAYERS
from tests.embedded.site import L1_BACKEND, ROOT, Site, blocks_of, config_of, digests_of, opened
from tests.embedded.tiers import REMOTE, memory

NAMES = "abcdef"
LOOKUPS = ("one", "two", "three")
NUM_ROUNDS = 600


def switches_of(site: Site) -> Sequence[Callable[[], object]]:
    """What an operator does, each followed by what undoes it."""
    engine, tokens = site.engine, range(2 * CHUNK_SIZE)
    return (
        lambda: engine.freeze(True), lambda: engine.freeze(False),
        lambda: engine.set_hot_cache(False), lambda: engine.set_hot_cache(True),
        lambda: engine.bypass(REMOTE, True), lambda: engine.bypass(REMOTE, False),
        lambda: engine.bypass(L1_BACKEND, True), lambda: engine.bypass(L1_BACKEND, False),
        lambda: engine.recreate_backend(REMOTE), lambda: engine.clear([L1_BACKEND], force=True),
        lambda: engine.store_mock(tokens), lambda: engine.retrieve_mock(tokens), engine.expire_cycle,
    )  # fmt: skip


def load_by_layers(site: Site, names: str) -> str:
    rows = [blocks_of(place) for place in range(len(names))]
    parts = [RetrievePart(digest, 0, row) for digest, row in zip(digests_of(names), rows, strict=True)]
    load = site.engine.begin_retrieve(RetrieveJob("by layers", ROOT, "", tuple(parts)))
    for layer in range(NUM_LAYERS):
        load.copy(layer)
    failure = load.end(is_whole=True)
    assert failure or not site.num_wrong(names, rows)
    return failure


def test_nothing_wrong_comes_of_switches_under_load(pool_folder: pathlib.Path) -> None:
    is_over, errors = threading.Event(), list[BaseException]()

    def until_over(act: Callable[[int], object]) -> threading.Thread:
        def run() -> None:
            number = 0
            try:
                while not is_over.is_set():
                    act(number)
                    number += 1
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with opened(pool_folder, config_of(6, backends=(memory(),), blocking_timeout_s=1.0)) as site:
        switches, random_of = switches_of(site), random.Random(7)

        def look_up(number: int) -> None:
            site.lookup(NAMES[: number % 6 + 1], LOOKUPS[number % 3], 0.02)
            if number % 4 == 0:
                site.engine.release([LOOKUPS[(number + 1) % 3]])

        threads = [until_over(lambda number: switches[number % len(switches)]()), until_over(look_up)]
        try:
            for number in range(NUM_ROUNDS):
                names = "".join(random_of.sample(NAMES, random_of.randint(1, 5)))
                site.engine.begin_step()
                if number % 2:
                    site.store(names)
                elif number % 4:
                    site.retrieve(names, LOOKUPS[number % 3])
                else:
                    load_by_layers(site, names)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert errors == []
        site.engine.freeze(False)
        site.engine.release([*LOOKUPS, "by layers"])
        site.wait_until_stored()
        site.wait_until(lambda: site.engine.storage.prefetches.is_at_rest)
        report = site.engine.l1.report()
        left = ("read_locked_count", "write_locked_count", "quarantined_count", "temporary_count")
        assert [report[name] for name in left] == [0] * len(left)
