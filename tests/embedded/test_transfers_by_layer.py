"""Loads and stores layer by layer: the bytes and the checks of those that copy everything at once."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.layer_loads import LayerLoads, LayerLoadThread
from lmcache.embedded.layer_transfers import LayerLoad
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE, NUM_LAYERS, content_of, digest_of
from tests.conftest import FakeClock
from tests.embedded.site import ROOT, Site, blocks_of, config_of, digests_of, opened

_PATIENCE_S = 20.0


@pytest.fixture
def site(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[Site]:
    with opened(pool_folder, config_of(8), clock=clock) as found:
        yield found
        assert found.num_locked == 0
        assert found.engine.l1.report()["write_locked_count"] == 0


@pytest.fixture
def thread() -> Iterator[LayerLoadThread]:
    one = LayerLoadThread()
    yield one
    one.close()


def job_of(names: str, num_tokens: int = 0) -> RetrieveJob:
    """All of these chunks into the first blocks, which hold something else until then."""
    parts = [RetrievePart(digest_of(name), 0, blocks_of(place)) for place, name in enumerate(names)]
    return RetrieveJob("lookup", ROOT, "", tuple(parts), num_tokens or len(names) * CHUNK_SIZE)


def stores_of(site: Site, names: str) -> StoreJob:
    rows = tuple(blocks_of(place) for place in range(len(names)))
    return StoreJob(ROOT, "", digests_of(names), rows)


def test_store_by_layers_is_found_by_a_load_of_all_at_once(site: Site) -> None:
    site.store("b")
    job = stores_of(site, "abc")
    store = site.engine.begin_store(job)
    assert store is not None
    for layer in (2, 0, 3):  # the engine computes one after the other
        for name, row in zip("abc", job.block_ids, strict=True):
            site.memory.pages[layer][list(row)] = content_of(digest_of(name), 0)[layer]
        store.copy(layer)
        site.memory.pages[layer] = 0  # what is read after this is read too late
    assert site.lookup("a") == 0
    for name, row in zip("abc", job.block_ids, strict=True):
        site.memory.pages[1][list(row)] = content_of(digest_of(name), 0)[1]
    assert site.engine.end_store(job, store) == (digest_of("a"), digest_of("c"))  # "b" was there
    assert site.lookup("abc") == 3
    assert site.retrieve("abc") == ""


def test_aborted_store_leaves_nothing(site: Site) -> None:
    store = site.engine.begin_store(stores_of(site, "ab"))
    assert store is not None
    store.copy(0)
    store.abort()
    store.abort()
    assert site.num_objects == 0
    assert site.store("ab") == "ab"


def test_copy_that_fails_at_the_end_gives_the_slots_back(site: Site) -> None:
    job = StoreJob(ROOT, "", digests_of("a"), ((1, 2, 3, 4000),))
    store = site.engine.begin_store(job)
    assert store is not None
    with pytest.raises(IndexError):
        site.engine.end_store(job, store)
    assert site.num_objects == 0


def test_layers_arrive_one_by_one(site: Site, thread: LayerLoadThread) -> None:
    site.store("abc")
    assert site.lookup("abc") == 3
    site.memory.pages[:] = 0
    loads = LayerLoads([site.engine.begin_retrieve(job_of("abc"))], NUM_LAYERS, _PATIENCE_S)
    assert (site.memory.pages == 0).all()
    thread.start(loads)
    for layer in range(NUM_LAYERS):
        assert loads.wait(layer)
        for place, name in enumerate("abc"):
            assert (site.memory.pages[layer][list(blocks_of(place))] == content_of(digest_of(name), 0)[layer]).all()
    assert loads.end() == [""]
    assert len(site.engine.locks) == 0


def test_block_that_the_engine_writes_to_is_loaded_ahead_of_all_layers(site: Site) -> None:
    """All but the last token of two chunks: the last block of the second."""
    site.store("ab")
    site.memory.pages[:] = 0
    load = site.engine.begin_retrieve(job_of("ab", 2 * CHUNK_SIZE - 1))
    last = blocks_of(1)[-1]
    assert (site.memory.pages[:, last] == content_of(digest_of("b"), 0)[:, -1]).all()
    assert not np.delete(site.memory.pages, last, axis=1).any()
    site.memory.pages[:, last] = 7  # the engine computes its last token
    for layer in range(NUM_LAYERS):
        load.copy(layer)
    assert load.end(is_whole=True) == ""
    assert (site.memory.pages[:, last] == 7).all()
    others = [block for place in (0, 1) for block in blocks_of(place) if block != last]
    expected = np.concatenate([content_of(digest_of(name), 0) for name in "ab"], axis=1)[:, :-1]
    assert (site.memory.pages[:, others] == expected).all()


def test_only_the_block_itself_where_it_is_all_there_is(site: Site) -> None:
    site.store("a")
    site.memory.pages[:] = 0
    part = RetrievePart(digest_of("a"), 1, (50,))
    load = site.engine.begin_retrieve(RetrieveJob("lookup", ROOT, "", (part,), BLOCK_SIZE - 1))
    load.copy(0)
    assert load.end(is_whole=True) == ""
    assert (site.memory.pages[:, 50] == content_of(digest_of("a"), 0)[:, 1]).all()


def test_chunk_that_is_missing_fails_its_load_and_no_other(site: Site, thread: LayerLoadThread) -> None:
    site.store("ab")
    site.memory.pages[:] = 0
    jobs = [job_of("axb"), job_of("ab")]
    loads = LayerLoads([site.engine.begin_retrieve(job) for job in jobs], NUM_LAYERS, _PATIENCE_S)
    thread.start(loads)
    assert loads.wait(NUM_LAYERS - 1)
    assert loads.end() == ["it was evicted or cleared", ""]
    assert site.num_wrong("ab", [blocks_of(0), blocks_of(1)]) == 0


@pytest.mark.parametrize("layer", [0, NUM_LAYERS - 1])
def test_cleared_while_it_is_read_is_a_failure(site: Site, layer: int) -> None:
    site.store("ab")
    load = site.engine.begin_retrieve(job_of("ab"))
    for each in range(NUM_LAYERS):
        load.copy(each)
        if each == layer:
            site.engine.l1.clear(True)
    assert load.end(is_whole=True) == "it was cleared while it was read"


class SlowLoad(LayerLoad):
    """Stops at a layer until it is let go."""

    def __init__(self, load: LayerLoad, layer: int) -> None:
        self._load, self._layer = load, layer
        self.is_stuck, self.may_go = threading.Event(), threading.Event()
        self.copied: list[int] = []

    def copy(self, layer: int) -> None:
        if layer == self._layer:
            self.is_stuck.set()
            assert self.may_go.wait(_PATIENCE_S)
        self.copied.append(layer)
        self._load.copy(layer)

    def end(self, is_whole: bool) -> str:
        return self._load.end(is_whole)


def test_layer_that_is_late_is_given_up_and_nothing_is_written_after_the_end(
    site: Site, thread: LayerLoadThread
) -> None:
    site.store("a")
    slow = SlowLoad(site.engine.begin_retrieve(job_of("a")), 1)
    loads = LayerLoads([slow], NUM_LAYERS, 0.05)
    thread.start(loads)
    assert slow.is_stuck.wait(_PATIENCE_S)
    assert not loads.wait(1)
    assert not loads.wait(2)
    threading.Timer(0.05, slow.may_go.set).start()
    assert loads.end() == ["it was not whole when its step ended"]
    site.memory.pages[:] = 0
    follow_up = LayerLoads([], NUM_LAYERS, _PATIENCE_S)
    thread.start(follow_up)
    assert follow_up.end() == []
    assert not site.memory.pages.any()
    assert slow.copied == [0, 1]


def test_last_layer_that_comes_after_it_was_given_up_is_a_failure(site: Site, thread: LayerLoadThread) -> None:
    """Who waited for it has computed without it, so that all of it is there in the end is no comfort."""
    site.store("a")
    slow = SlowLoad(site.engine.begin_retrieve(job_of("a")), NUM_LAYERS - 1)
    loads = LayerLoads([slow], NUM_LAYERS, 0.05)
    thread.start(loads)
    assert slow.is_stuck.wait(_PATIENCE_S)
    assert not loads.wait(NUM_LAYERS - 1)
    slow.may_go.set()
    site.wait_until(lambda: len(slow.copied) == NUM_LAYERS and loads._is_over)
    assert loads.end() == ["it was not whole when its step ended"]


def test_step_that_is_not_wanted_any_more_ends_at_once(site: Site, thread: LayerLoadThread) -> None:
    site.store("a")
    slow = SlowLoad(site.engine.begin_retrieve(job_of("a")), 0)
    loads = LayerLoads([slow], NUM_LAYERS, _PATIENCE_S)
    thread.start(loads)
    assert slow.is_stuck.wait(_PATIENCE_S)

    def let_go_once_it_is_given_up() -> None:
        site.wait_until(lambda: loads._is_cancelled)
        slow.may_go.set()

    letting_go = threading.Thread(target=let_go_once_it_is_given_up)
    letting_go.start()
    assert loads.end(is_wanted=False) == ["it was not whole when its step ended"]
    assert slow.copied == [0]
    letting_go.join()


def test_copy_that_raises_fails_its_load_alone(
    site: Site, thread: LayerLoadThread, caplog: pytest.LogCaptureFixture
) -> None:
    site.store("a")
    part = RetrievePart(digest_of("a"), 0, (1, 4000))
    broken = RetrieveJob("broken", ROOT, "", (part,), 2 * BLOCK_SIZE)
    loads = LayerLoads([site.engine.begin_retrieve(job) for job in (broken, job_of("a"))], NUM_LAYERS, _PATIENCE_S)
    thread.start(loads)
    failures: Sequence[str] = loads.end()
    assert failures[0].startswith("IndexError")
    caplog.clear()  # the traceback holds views of the pool
    assert failures[1] == ""
    assert site.num_wrong("a", [blocks_of(0)]) == 0


def test_copies_without_a_thread_if_there_is_none(site: Site) -> None:
    site.store("a")
    closed = LayerLoadThread()
    closed.close()
    loads = LayerLoads([site.engine.begin_retrieve(job_of("a"))], NUM_LAYERS, _PATIENCE_S)
    closed.start(loads)
    assert loads.end() == [""]
    assert site.num_wrong("a", [blocks_of(0)]) == 0
