"""The worker half: one rank's pages, its membership and its copying threads."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from lmcache.core.layout import KVLayout, check_chunk_size
from lmcache.errors import DeclinedError, LMCacheError, RequestRefusedError
from lmcache.integration.mp.checksums import answer_query
from lmcache.integration.mp.jobs import LoadJob, LoadResult, StoreOutcome, StoreResult
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.membership import Membership, MembershipConfig
from lmcache.integration.mp.worker import TransferConfig, TransferWorker
from lmcache.integration.vllm.checksums import readers
from lmcache.integration.vllm.metadata import MPConnectorMetadata, MPWorkerReport
from lmcache.integration.vllm.mp_config import MPConnectorConfig
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.stats import MPConnectorStats
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots
from lmcache.transport.client import Connection

logger = logging.getLogger(__name__)

_FIRST_CONTACT_S = 1.0
_IDLE_WAIT_S = 0.002


class LMCacheMPWorkerAdapter:
    """Belongs to the model runner's thread; copying and heartbeats have threads of their own."""

    def __init__(
        self,
        config: MPConnectorConfig,
        model_name: str,
        engine_id: str,
        parallel: ParallelStrategy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._engine_id = engine_id
        self._parallel = parallel
        self._clock = clock
        self._client_uid = secrets.randbits(63) | 1
        self._ledger = WriteLedger()
        self._layout: KVLayout | None = None
        self._layers: list[Any] = []
        self._transfer: TransferWorker | None = None
        self._blocks_per_chunk = 0
        self._regions: list[np.ndarray] = []
        self._refused_loads: set[str] = set()
        self._bad_block_ids: set[int] = set()
        self._report = MPWorkerReport()
        self.stats = MPConnectorStats()
        self.membership = Membership(
            MembershipConfig(config.url, config.token, config.mq_timeout_s, config.heartbeat_s),
            self._client_uid,
            "worker",
            self._make_registration,
            answer_query=self._answer_query,
            touches_pool=True,
        )

    def register(self, layout: KVLayout, regions: list[np.ndarray], layers: list[Any]) -> None:
        """The rank's pages are there: join the server. Raises ValueError if the server's chunks do not fit them.

        `layers` are the engine's own tensors in the order of the model, their first axis its blocks, for checksums.
        """
        self._layout, self._layers = layout, layers
        self._regions = regions
        self._refuse_misfit(layout)
        self.membership.start()

    def _refuse_misfit(self, layout: KVLayout) -> None:
        """At start, a server whose chunks do not fit is an error; one that is absent may come later."""
        connection = Connection(self._config.url, self._client_uid)
        try:
            number = connection.send(m.Hello(self._config.token), 0, _FIRST_CONTACT_S)
            # Somebody is there: busy as it may be, what it says decides whether the engine starts.
            welcome = connection.wait_or_raise(number, self._config.mq_timeout_s, "Hello")
            if isinstance(welcome, m.Welcome):
                check_chunk_size(welcome.chunk_size, layout.block_size)
        except RequestRefusedError as error:
            logger.warning("the lmcache server refuses this engine: %s", error)
        except LMCacheError as error:
            if "chunk size" in str(error):
                raise ValueError(str(error)) from error
        finally:
            connection.close()

    def _make_registration(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterWorker:
        """Runs in the control thread."""
        layout = self._layout
        if layout is None:
            raise LMCacheError("the KV cache is not registered yet")
        check_chunk_size(welcome.chunk_size, layout.block_size)
        self._start_transfer(layout, welcome.chunk_size)
        attempt, writing = self._ledger.snapshot_for_registration()
        return m.RegisterWorker(
            self._engine_id, self._model_name, self._parallel.world_size, self._parallel.rank,
            msgspec.json.encode(layout), nonce, attempt,
            pack_slots(writing), self._config.token,
        )  # fmt: skip

    def _start_transfer(self, layout: KVLayout, chunk_size: int) -> None:
        """Bring the copying threads up, before the registration that lets anyone promise us a load."""
        blocks_per_chunk = layout.blocks_per_chunk(chunk_size)
        if self._transfer is not None:
            if blocks_per_chunk != self._blocks_per_chunk:
                raise DeclinedError(
                    f"the server now has chunks of {chunk_size} tokens, this engine began with "
                    f"{self._blocks_per_chunk * layout.block_size}: restart vLLM, or the server as it was"
                )
            return
        self._blocks_per_chunk = blocks_per_chunk
        config = TransferConfig(
            column=self._parallel.column,
            blocks_per_chunk=blocks_per_chunk,
            stores=self._parallel.stores,
            num_threads=self._config.copy_threads,
            rpc_timeout_s=self._config.mq_timeout_s,
            load_timeout_s=self._config.load_timeout_s,
            store_timeout_s=self._config.store_timeout_s,
            pending_store_bytes_max=int(self._config.pending_store_gb * (1 << 30)),
        )
        transfer = TransferWorker(
            config, CpuCopier(self._regions), self.membership, self._ledger, self._clock,
            report=self.membership.tell_later,
        )  # fmt: skip
        transfer.start()
        self._transfer = transfer

    # Each step

    def load_synchronously(self, meta: MPConnectorMetadata) -> None:
        """Before the forward pass: what this returns from has been read, or is reported as bad."""
        for job in meta.loads:
            result = self._transfer.load_now(job) if self._transfer is not None else _no_server(job)
            self._count_load(result)
            self._report.loads[job.request_id] = self._report.loads.get(job.request_id, 0) + 1
            if not result.is_ok:
                self._report.failed_loads.add(job.request_id)
                self._bad_block_ids.update(block for chunk in job.chunks for block in chunk.block_ids)

    def load_asynchronously(self, meta: MPConnectorMetadata) -> None:
        for job in meta.loads:
            if self._transfer is not None:
                self._transfer.submit_load(job)
            else:
                self._count_load(_no_server(job))
                self._refused_loads.add(job.request_id)

    def announce_stores(self, meta: MPConnectorMetadata) -> None:
        """Before the forward pass: the places of the first store are reserved while its pages are computed."""
        if self._transfer is None:
            return
        if meta.stores:
            self._transfer.announce_store(meta.stores[0])
        else:
            self._transfer.withdraw_store()

    def submit_stores(self, meta: MPConnectorMetadata) -> None:
        """After the forward pass: the pages are written, the scheduler holds their blocks.

        vLLM calls this also on the way out of a forward pass that raised: those pages are not saved.
        """
        has_failed = sys.exc_info()[1] is not None
        for job in meta.stores:
            if has_failed:
                self._take_store(StoreResult(job.job_id, StoreOutcome.DROPPED))
            elif self._transfer is not None:
                self._transfer.submit_store(job)
            else:
                self._take_store(StoreResult(job.job_id, StoreOutcome.FAILED))

    def take_finished_loads(self) -> tuple[set[str], set[str]]:
        """Requests whose load ended on this rank, and those of them that failed."""
        ended, failed = set(self._refused_loads), set(self._refused_loads)
        self._refused_loads.clear()
        if self._transfer is None:
            return ended, failed
        stores, loads = self._transfer.take_finished()
        for store in stores:
            self._take_store(store)
        for load in loads:
            self._count_load(load)
            ended.add(load.request_id)
            if not load.is_ok:
                failed.add(load.request_id)
        return ended, failed

    def wait_for_load(self) -> None:
        """The engine's step has nothing to compute: leave the interpreter to the copying threads for a moment."""
        if self._transfer is not None:
            self._transfer.wait_for_load(_IDLE_WAIT_S)

    def take_bad_block_ids(self) -> set[int]:
        bad, self._bad_block_ids = self._bad_block_ids, set()
        return bad

    def take_report(self) -> MPWorkerReport | None:
        if not self._report.stores and not self._report.loads:
            return None
        report, self._report = self._report, MPWorkerReport()
        return report

    def _take_store(self, result: StoreResult) -> None:
        self._report.stores[result.job_id] = self._report.stores.get(result.job_id, 0) + 1
        if result.stored and self._parallel.rank == 0:
            self._report.stored[result.job_id] = result.stored
        self.stats.add("stores")
        self.stats.add("stored_chunks", len(result.stored))
        self.stats.add("store_bytes", result.num_bytes)
        self.stats.add("store_seconds", result.duration_s)
        is_lost = result.outcome not in (StoreOutcome.STORED, StoreOutcome.SKIPPED)
        self.stats.add("dropped_stores", int(is_lost))

    def _count_load(self, result: LoadResult) -> None:
        if not result.is_ok:
            logger.warning("request %s: a load failed and is recomputed: %s", result.request_id, result.error)
            return
        self.stats.add("loads")
        self.stats.add("load_bytes", result.num_bytes)
        self.stats.add("load_seconds", result.duration_s)

    def _answer_query(self, query: m.ChecksumQuery) -> m.ChecksumResult:
        """Runs in the control thread: MD5s of the pages as they are now."""
        num_blocks = self._layout.num_blocks if self._layout is not None else 0
        return answer_query(query, readers(self._layers), num_blocks)

    def shutdown(self) -> None:
        if self._transfer is not None:
            self._transfer.stop()
        self.membership.stop()


def _no_server(job: LoadJob) -> LoadResult:
    return LoadResult(job.request_id, False, error="this rank has not joined a server")
