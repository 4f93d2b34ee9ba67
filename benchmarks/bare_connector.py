"""The reference: a connector that keeps chunks in plain memory of the vLLM process, and nothing else.

One copy each way, no server, no checks, no eviction. What our connector takes beyond this one is the price
of being a cache outside the engine. It shows, too, how little vLLM's interface asks of a
connector: references in the block pool, asynchronous loads, full-prompt hits.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)

from lmcache.integration.vllm.layout import describe_layout
from lmcache.integration.vllm.saves import SaveLedger
from lmcache.kv_copy.cpu import CpuCopier

CHUNK_TOKENS = 256


@dataclass
class BareMetadata(KVConnectorMetadata):
    loads: list[tuple[str, list[tuple[bytes, int, list[int]]]]] = field(default_factory=list)
    stores: list[tuple[int, list[tuple[bytes, list[int]]]]] = field(default_factory=list)


@dataclass
class BareReport(KVConnectorWorkerMetadata):
    stored: dict[int, int]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, BareReport)
        for job_id, count in other.stored.items():
            self.stored[job_id] = self.stored.get(job_id, 0) + count
        return self


class BareConnector(KVConnectorBase_V1):
    """`bare.load_mode`: async (default) or sync; `bare.fail_loads`: fail so many loads, then deliver."""

    # Chunks by epoch and hash. Of the process: the scheduler's half and the worker's half share it.
    memory: ClassVar[dict[bytes, np.ndarray]] = {}

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config or {}
        self._is_async = extra.get("bare.load_mode", "async") == "async"
        self._fail_loads = int(extra.get("bare.fail_loads", 0))
        self._block_size = vllm_config.cache_config.block_size
        self._blocks_per_chunk = CHUNK_TOKENS // self._block_size
        self._saves = SaveLedger(vllm_config.parallel_config.world_size, 0.5)
        self._epoch = 0
        self._known: set[bytes] = set()
        self._job_hashes: dict[int, list[bytes]] = {}
        self._local: dict[str, int] = {}
        self._handed: dict[str, int] = {}
        self._requests: dict[str, Any] = {}
        self._failed: set[str] = set()
        self._loads: list[tuple[str, list[tuple[bytes, int, list[int]]]]] = []
        self._copier: CpuCopier | None = None
        self._work: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._done_loads: deque[tuple[str, bool]] = deque()
        self._done_stores: deque[int] = deque()
        self._load_ended = threading.Event()
        self._num_loading = 0
        self._is_idle_step = False
        self._bad_blocks: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        _, regions = describe_layout(kv_caches, self._vllm_config, self._kv_cache_config)
        self._copier = CpuCopier(regions)
        threading.Thread(target=self._copy, name="bare-copy", daemon=True).start()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._is_idle_step = forward_context.attn_metadata is None
        for request_id, chunks in self._get_connector_metadata().loads:
            if self._is_async:
                self._num_loading += 1
                self._work.put(("load", (request_id, chunks)))
            elif not self._load(chunks):
                self._bad_blocks.update(block for _, _, blocks in chunks for block in blocks)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        for job in self._get_connector_metadata().stores:
            self._work.put(("store", job))

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        # An engine that only polls would fight the copying thread for the interpreter.
        if self._is_idle_step and self._num_loading and not self._done_loads:
            self._load_ended.wait(0.002)
        self._load_ended.clear()
        ended, failed = set(), set()
        while self._done_loads:
            request_id, is_ok = self._done_loads.popleft()
            ended.add(request_id)
            self._num_loading -= 1
            if not is_ok:
                failed.add(request_id)
        return KVConnectorTransferResults(None, ended or None, failed)  # type: ignore[arg-type]

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        stored = {}
        while self._done_stores:
            stored[self._done_stores.popleft()] = 1
        return BareReport(stored) if stored else None

    def _copy(self) -> None:
        while True:
            kind, job = self._work.get()
            if kind == "load":
                self._done_loads.append((job[0], self._load(job[1])))
                self._load_ended.set()
            else:
                for digest, blocks in job[1]:
                    self._store(digest, blocks)
                self._done_stores.append(job[0])

    def _load(self, chunks: list[tuple[bytes, int, list[int]]]) -> bool:
        assert self._copier is not None
        if self._fail_loads:
            self._fail_loads -= 1
            return False
        for digest, first, blocks in chunks:
            chunk = self.memory.get(digest)
            if chunk is None:  # reset meanwhile
                return False
            self._copier.scatter(chunk, first, blocks)
        return True

    def _store(self, digest: bytes, blocks: list[int]) -> None:
        assert self._copier is not None
        if digest not in self.memory:
            chunk = np.empty(len(blocks) * self._copier.block_bytes, dtype=np.uint8)
            self._copier.gather(blocks, chunk)
            self.memory[digest] = chunk

    # Scheduler

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._saves.bind(gpu_block_pool)

    def _digests(self, request: Any) -> list[bytes]:
        """One a whole chunk of the prompt: the hash of its last block, which covers all before."""
        hashes = request.block_hashes[self._blocks_per_chunk - 1 :: self._blocks_per_chunk]
        epoch = self._epoch.to_bytes(8, "big")
        return [epoch + digest for digest in hashes[: request.num_prompt_tokens // CHUNK_TOKENS]]

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        self._requests[request.request_id] = request
        self._local[request.request_id] = num_computed_tokens
        num_held = 0
        for digest in self._digests(request):
            if digest not in self._known:
                break
            num_held += 1
        self._handed[request.request_id] = num_held
        if request.request_id in self._failed:
            return 0, False
        held = min(num_held * CHUNK_TOKENS, request.num_tokens - (0 if self._is_async else 1))
        num_tokens = held - num_computed_tokens
        return (num_tokens, self._is_async) if num_tokens > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens <= 0:
            return
        block_ids = blocks.get_block_ids()[0]
        local = self._local[request.request_id]
        first, last = local // self._block_size, -(-(local + num_external_tokens) // self._block_size)
        chunks, per_chunk, digests = [], self._blocks_per_chunk, self._digests(request)
        for index in range(first // per_chunk, -(-last // per_chunk)):
            start, end = max(first, index * per_chunk), min(last, (index + 1) * per_chunk)
            chunks.append((digests[index], start - index * per_chunk, list(block_ids[start:end])))
        self._loads.append((request.request_id, chunks))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        meta = BareMetadata(loads=self._loads)
        self._loads = []
        cached = scheduler_output.scheduled_cached_reqs
        scheduled = [(new.req_id, new.num_computed_tokens) for new in scheduler_output.scheduled_new_reqs]
        for request_id, num_computed in scheduled + list(zip(cached.req_ids, cached.num_computed_tokens, strict=True)):
            self._save(scheduler_output, request_id, num_computed, meta)
        return meta

    def _save(self, output: Any, request_id: str, num_computed: int, meta: BareMetadata) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return
        computed = min(num_computed + output.num_scheduled_tokens[request_id], request.num_prompt_tokens)
        first, last = self._handed.get(request_id, 0), computed // CHUNK_TOKENS
        if last <= first:
            return
        self._handed[request_id] = last
        per_chunk, digests = self._blocks_per_chunk, self._digests(request)
        block_ids = output.kv_connector_block_state.get_block_ids(request_id)[0]
        rows = [(digests[i], list(block_ids[i * per_chunk : (i + 1) * per_chunk])) for i in range(first, last)]
        job_id = self._saves.open(request_id, [block for _, blocks in rows for block in blocks])
        self._job_hashes[job_id] = [digest for digest, _ in rows]
        meta.stores.append((job_id, rows))

    def update_connector_output(self, connector_output: Any) -> None:
        report = connector_output.kv_connector_worker_meta
        for job_id, count in report.stored.items() if isinstance(report, BareReport) else ():
            if self._saves.report(job_id, count):
                self._known.update(self._job_hashes.pop(job_id))
        self._failed.update(self._requests.keys() & (connector_output.failed_recving or ()))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        for table in (self._requests, self._local, self._handed):
            table.pop(request.request_id, None)
        self._failed.discard(request.request_id)
        return False, None

    def has_pending_push_work(self) -> bool:
        return self._saves.num_open > 0

    def reset_cache(self) -> bool | None:
        """What is being saved right now ends up under the old epoch, where nobody looks."""
        self._epoch += 1
        self._known.clear()
        self.memory.clear()
        self._requests = {key: one for key, one in self._requests.items() if not one.num_computed_tokens}
        return True
