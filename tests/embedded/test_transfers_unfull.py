"""Chunks that are not whole: they take the room of their own blocks, and come back into any."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from lmcache.embedded.jobs import Prompt, RetrieveJob, RetrievePart, StoreJob
from lmcache.testing.paged_memory import BLOCKS_PER_CHUNK, CHUNK_BYTES, content_of, digest_of
from tests.conftest import FakeClock
from tests.embedded.site import ROOT, Site, blocks_of, config_of, opened

BLOCK_BYTES = CHUNK_BYTES // BLOCKS_PER_CHUNK


@pytest.fixture
def site(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[Site]:
    with opened(pool_folder, config_of(8), clock=clock) as found:
        yield found


def store_with_tail(site: Site, num_tail_blocks: int, by_layer: bool = False) -> StoreJob:
    """Chunk "a", and the first blocks of "t" as a last one that is not whole."""
    rows = (blocks_of(0), blocks_of(1)[:num_tail_blocks])
    site.memory.fill(digest_of("a"), blocks_of(0))
    site.memory.fill(digest_of("t"), blocks_of(1))
    job = StoreJob(ROOT, "", (digest_of("a"), digest_of("t")), rows)
    if by_layer:
        store = site.engine.begin_store(job)
        assert store is not None
        assert site.engine.end_store(job, store) == job.digests
    else:
        assert site.engine.store(job) == job.digests
    return job


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("num_tail_blocks", [1, 3])
def test_unwhole_chunk_is_stored_and_comes_back(site: Site, num_tail_blocks: int, by_layer: bool) -> None:
    job = store_with_tail(site, num_tail_blocks, by_layer)
    prompt = Prompt(ROOT, "", job.digests, num_tail_blocks)
    assert site.engine.lookup("lookup", prompt, 0.0) == 2
    assert site.engine.locks.num_bytes == CHUNK_BYTES + num_tail_blocks * BLOCK_BYTES
    goal = (40, 17, 30)[:num_tail_blocks]
    parts = (RetrievePart(digest_of("t"), 0, goal, num_tail_blocks),)
    assert site.engine.retrieve(RetrieveJob("lookup", ROOT, "", parts)) == ""
    expected = content_of(digest_of("t"), 0)[:, :num_tail_blocks]
    assert (site.memory.pages[:, list(goal)] == expected).all()
    assert site.num_locked == 0


@pytest.mark.parametrize("chunk_blocks", [0, 1, 3])
def test_place_of_another_size_is_not_trusted(site: Site, chunk_blocks: int) -> None:
    store_with_tail(site, 2)
    before = site.memory.pages.copy()
    parts = (RetrievePart(digest_of("t"), 0, (40,), chunk_blocks),)
    failure = site.engine.retrieve(RetrieveJob("lookup", ROOT, "", parts))
    assert failure == "its place does not fit this engine"
    assert np.array_equal(site.memory.pages, before)
    assert site.num_locked == 0
