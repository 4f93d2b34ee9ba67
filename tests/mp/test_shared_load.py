"""A load that several copying threads share: one chunk that fails, fails it, whatever the others do."""

import dataclasses
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lmcache.engine.pool import Pool, PoolConfig
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, LoadResult, PromisedChunk
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.worker import TransferConfig, TransferWorker
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.memory.mapping import PoolMapping
from lmcache.memory.pool_files import Geometry
from lmcache.protocol.blobs import split_places
from lmcache.testing.waiting import wait_until
from tests.conftest import new_pool_folder

BLOCK_BYTES = 4096
KEY = NamespaceKey("m", bytes(32), "")
RANK = (1 << 24 | 1 << 8, 0)
DIGESTS = [bytes([number]) * 32 for number in range(8)]


class SlowCopier:
    """Copies that end long after a chunk that is refused without a copy."""

    block_bytes = BLOCK_BYTES
    num_blocks = len(DIGESTS)

    def gather(self, block_ids, slot) -> None:
        raise AssertionError("nothing is stored here")

    def scatter(self, slot, first_block, block_ids) -> None:
        time.sleep(0.05)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(PoolConfig(new_pool_folder(), Geometry.for_pool(64 * BLOCK_BYTES)))
    pool.wait_until_populated(10)
    yield pool
    pool.close(keep=False)


def promised(pool: Pool) -> tuple[LoadChunk, ...]:
    reserved = pool.l1.reserve(KEY, RANK, 1, DIGESTS, BLOCK_BYTES)
    places = split_places(pool.l1.places(reserved.slots))
    assert len(pool.l1.commit(1, [Place(slot, word) for slot, word, _, _ in places])) == len(DIGESTS)
    found = split_places(pool.l1.lookup(KEY, [RANK], DIGESTS, LockBudget(1 << 30))[1])
    chunks = [PromisedChunk(digest, *place) for digest, place in zip(DIGESTS, found, strict=True)]
    chunks[3] = dataclasses.replace(chunks[3], digest=b"\xff" * 32)  # not what its slot holds
    return tuple(LoadChunk((chunk,), 0, (number,)) for number, chunk in enumerate(chunks))


def load(pool: Pool, num_threads: int) -> LoadResult:
    mapping = PoolMapping(pool.files.folder, pool.files.pool_id, pool.files.inode)
    joined = SimpleNamespace(mapping=mapping)
    membership = SimpleNamespace(last=joined, current=joined, client_uid=1)
    worker = TransferWorker(TransferConfig(0, 1, num_threads=num_threads), SlowCopier(), membership, WriteLedger())
    worker.start()
    try:
        worker.submit_load(LoadJob("request", pool.files.pool_id, promised(pool)))
        results: list[LoadResult] = []
        wait_until(lambda: results.extend(worker.take_finished()[1]) or results)
        return results[0]
    finally:
        worker.stop()


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_chunk_that_fails_is_not_outvoted_by_chunks_that_end_later(pool: Pool, num_threads: int) -> None:
    result = load(pool, num_threads)
    assert not result.is_ok
    assert result.error == "it was evicted or cleared"
