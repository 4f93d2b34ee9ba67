"""Tokens of operators: stored and loaded beside requests, and never into their pages."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from lmcache.embedded.config import Rank
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.errors import BlockRangeError, TokenRangeError
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.testing.paged_memory import CHUNK_SIZE, PagedMemory, digest_of, make_layout
from tests.embedded.site import config_of, opened
from tests.embedded.tiers import memory


def test_whole_chunks_are_stored_and_found(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        assert site.engine.store_mock(range(2 * CHUNK_SIZE + 3)) == 2
        assert site.engine.store_mock(range(3 * CHUNK_SIZE)) == 1
        site.memory.poison(range(64))
        assert site.engine.retrieve_mock(range(5 * CHUNK_SIZE)) == 3 * CHUNK_SIZE
        assert site.engine.retrieve_mock(range(1, 5 * CHUNK_SIZE)) == 0
        assert (site.memory.pages == 0xA5).all()
        assert site.num_locked == 0


def test_they_come_back_from_tiers(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of(backends=(memory(),))) as site:
        site.engine.store_mock(range(2 * CHUNK_SIZE))
        site.wait_until_stored()
        site.clear_l1()
        assert site.engine.retrieve_mock(range(2 * CHUNK_SIZE)) == 2 * CHUNK_SIZE


def test_more_than_the_cache_has_is_refused(pool_folder: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        with pytest.raises(BlockRangeError, match="the KV cache has 64: give at most 256 tokens"):
            site.engine.store_mock(range(64 * 4 + CHUNK_SIZE))
        with pytest.raises(TokenRangeError):
            site.engine.store_mock(range(-1, CHUNK_SIZE))


def test_an_engine_of_its_own_loads_into_its_pages(pool_folder: pathlib.Path) -> None:
    pages = PagedMemory(0, 64)
    rank = Rank("model", 1, 0, 0, make_layout(64))
    engine = EmbeddedEngine(config_of(), rank, CpuCopier([pages.pages]), pool_folder, loads_mock_into_pages=True)
    try:
        engine.start()
        engine.pool.wait_until_populated(20.0)
        pages.fill(digest_of("a"), (0, 1, 2, 3))
        pages.fill(digest_of("b"), (4, 5, 6, 7))
        before = np.array(pages.pages)
        assert engine.store_mock(range(2 * CHUNK_SIZE)) == 2
        pages.poison(range(8))
        assert engine.retrieve_mock(range(2 * CHUNK_SIZE)) == 2 * CHUNK_SIZE
        assert (pages.pages == before).all()
    finally:
        engine.close()
