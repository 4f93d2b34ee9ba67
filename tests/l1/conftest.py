"""A pool with an L1 over it, opened and reopened as a server would."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from lmcache.engine.pool import Pool, PoolConfig
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.values import Place
from lmcache.memory.pool_files import Geometry
from lmcache.protocol.blobs import split_places
from tests.conftest import FakeClock

UNIT_BYTES = 4096
OpenPool = Callable[..., Pool]


@pytest.fixture
def open_pool(pool_folder: pathlib.Path, clock: FakeClock) -> Iterator[OpenPool]:
    """`open_pool(units=16, records=64, policy="LRU")`; what a test leaves open is closed."""
    pools: list[Pool] = []

    def open_one(units: int = 16, records: int = 64, policy: str = "LRU") -> Pool:
        config = PoolConfig(pool_folder, Geometry(units * UNIT_BYTES, records), eviction_policy=policy)
        pool = Pool(config, clock)
        pool.wait_until_populated(30)
        pools.append(pool)
        return pool

    yield open_one
    if pools:
        pools[-1].close(keep=False)


class Writer:
    """One owner that stores digests for one namespace and rank."""

    def __init__(self, l1: L1Manager, key: NamespaceKey, rank_group: RankGroup, uid: int = 1) -> None:
        self.l1 = l1
        self.key = key
        self.rank_group = rank_group
        self.uid = uid

    def reserve(self, digests: list[bytes], units: int = 1) -> list[Place]:
        result = self.l1.reserve(self.key, self.rank_group, self.uid, digests, units * UNIT_BYTES)
        return [Place(slot, word) for slot, word, _, _ in split_places(self.l1.places(result.slots))]

    def store(self, digests: list[bytes], units: int = 1) -> int:
        return len(self.l1.commit(self.uid, self.reserve(digests, units)))

    def holds(self, digests: list[bytes]) -> list[bool]:
        """Which of these are there, each asked for by itself. Counts as a use."""
        return [bool(self.l1.lookup(self.key, [self.rank_group], [digest], None)[0]) for digest in digests]
