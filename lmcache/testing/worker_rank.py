"""One rank of an engine without a model: synthetic pages, and the product's own membership and transfers."""

from __future__ import annotations

import msgspec

from lmcache.integration.mp.checksums import answer_query
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.integration.mp.worker import TransferConfig, TransferWorker
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots
from lmcache.testing.faults import FaultObserver
from lmcache.testing.paged_memory import BLOCKS_PER_CHUNK, PagedMemory, SteppedCopier, make_layout

MODEL = "synthetic"


class WorkerProcessConfig(msgspec.Struct, frozen=True):
    """`uids`: of the scheduler, then of each rank. Requests have at most `chunks_max` chunks.

    `first_batch_chunks`: with fewer than a store has, it goes in several batches at once.
    `prefetch_wait_s`: how long lookups wait for what the server fetches from its tiers.
    """

    url: str
    engine_id: str
    uids: list[int]
    chunks_max: int = 8
    first_batch_chunks: int = 8
    rpc_timeout_s: float = 0.5
    heartbeat_s: float = 0.2
    prefetch_wait_s: float = 0.0


class WorkerRank:
    """One rank: its pages, its registration, its transfers."""

    def __init__(self, config: WorkerProcessConfig, rank: int, faults: FaultObserver) -> None:
        self.rank = rank
        self._config = config
        self._ledger = WriteLedger()
        # Half of the blocks are for loads, half for stores: both may be under way.
        self.memory = PagedMemory(rank, 2 * config.chunks_max * BLOCKS_PER_CHUNK)
        connection = MembershipConfig(config.url, timeout_s=config.rpc_timeout_s, heartbeat_s=config.heartbeat_s)
        self.membership = Membership(
            connection, config.uids[1 + rank], "worker", self._registration, answer_query=self._answer_query
        )
        self.transfers = TransferWorker(
            TransferConfig(
                rank,
                BLOCKS_PER_CHUNK,
                rpc_timeout_s=config.rpc_timeout_s,
                first_batch_chunks=config.first_batch_chunks,
                chunks_per_batch=2 * config.first_batch_chunks,
            ),
            SteppedCopier(self.memory, faults),
            self.membership,
            self._ledger,
            steps=faults,
            report=self.membership.tell_later,
        )

    def _registration(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterWorker:
        attempt, writing = self._ledger.snapshot_for_registration()
        return m.RegisterWorker(
            self._config.engine_id, MODEL, len(self._config.uids) - 1, self.rank,
            msgspec.json.encode(make_layout(self.memory.num_blocks)), nonce, attempt,
            pack_slots(writing),
        )  # fmt: skip

    def _answer_query(self, query: m.ChecksumQuery) -> m.ChecksumResult:
        return answer_query(query, self.memory.readers(), self.memory.num_blocks)

    def start(self) -> None:
        self.membership.start()
        self.transfers.start()

    def stop(self) -> None:
        self.transfers.stop()
        self.membership.stop()
