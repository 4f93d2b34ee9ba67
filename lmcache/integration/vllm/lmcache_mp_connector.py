"""The connector vLLM loads under its built-in name `LMCacheMPConnector`.

Thin: each hook goes to the scheduler half or the worker half. What cannot be served is
declined with one line, and vLLM runs on without cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from lmcache.errors import ConfigError, DeclinedError, LMCacheError
from lmcache.integration.vllm.checksums import layers_by_index
from lmcache.integration.vllm.declining import say_declined
from lmcache.integration.vllm.kv_events import EventLog
from lmcache.integration.vllm.layout import describe_layout, unsupported_reason
from lmcache.integration.vllm.metadata import MPConnectorMetadata
from lmcache.integration.vllm.model_facts import model_facts
from lmcache.integration.vllm.mp_config import check_transfer_mode, parse_mp_config
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.scheduler_adapter import LMCacheMPSchedulerAdapter
from lmcache.integration.vllm.stats import MPConnectorPromMetrics, MPConnectorStats
from lmcache.integration.vllm.utils import mla_enabled
from lmcache.integration.vllm.worker_adapter import LMCacheMPWorkerAdapter
from lmcache.utils import init_logger

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)


class LMCacheMPConnector(KVConnectorBase_V1):
    """Caches KV in an lmcache server on the same host."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        extra = transfer.kv_connector_extra_config or {}
        try:
            self._config, warnings = parse_mp_config(extra)
            check_transfer_mode(extra, os.environ)
        except ConfigError as error:
            raise ValueError(f"kv_connector_extra_config: {error}") from error
        self._scheduler: LMCacheMPSchedulerAdapter | None = None
        self._worker: LMCacheMPWorkerAdapter | None = None
        self._is_idle_step = False
        reason = unsupported_reason(vllm_config, kv_cache_config)
        if reason is not None:
            say_declined(transfer.engine_id, reason)
            return
        if role == KVConnectorRole.SCHEDULER:
            for warning in warnings:
                logger.warning("%s", warning)
            self._scheduler = self._make_scheduler(vllm_config)
        else:
            self._worker = self._make_worker(vllm_config)

    def _make_scheduler(self, vllm_config: VllmConfig) -> LMCacheMPSchedulerAdapter | None:
        try:
            facts = model_facts(vllm_config, self._config.model_version or None)
        except LMCacheError as error:
            say_declined(vllm_config.kv_transfer_config.engine_id, str(error))
            return None
        self._choose_recompute()
        transfer = vllm_config.kv_transfer_config
        is_mla = mla_enabled(vllm_config.model_config)
        events = vllm_config.kv_events_config
        wants_events = events is not None and events.enable_kv_cache_events
        scheduler = LMCacheMPSchedulerAdapter(
            self._config,
            vllm_config.model_config.model,
            transfer.engine_id,
            ParallelStrategy.of(vllm_config, is_mla, 0),
            vllm_config.cache_config.block_size,
            facts,
            can_load=transfer.is_kv_consumer,
            can_save=transfer.is_kv_producer,
            wants_events=wants_events,
        )
        if wants_events:
            scheduler.planner.events = EventLog()
        scheduler.start()
        return scheduler

    def _choose_recompute(self) -> None:
        """A promised load that fails must be recomputed, not end the user's request.

        vLLM reads its policy after it has built the connector. `fail` is its default, and a
        user who wrote it there cannot be told from one who wrote nothing: whoever means it
        says so with our own key too.
        """
        transfer = self._vllm_config.kv_transfer_config
        if transfer.kv_load_failure_policy != "fail" or self._config.load_failure_policy == "fail":
            return
        transfer.kv_load_failure_policy = "recompute"
        logger.info(
            "kv_load_failure_policy is set to recompute: a load that fails costs time, not the request "
            "(lmcache.mp.load_failure_policy=fail leaves it as it was)"
        )

    def _make_worker(self, vllm_config: VllmConfig) -> LMCacheMPWorkerAdapter:
        from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

        is_mla = mla_enabled(vllm_config.model_config)
        tensor_size = vllm_config.parallel_config.tensor_parallel_size
        rank = get_pp_group().rank_in_group * tensor_size + get_tensor_model_parallel_rank()
        parallel = ParallelStrategy.of(vllm_config, is_mla, rank)
        return LMCacheMPWorkerAdapter(
            self._config, vllm_config.model_config.model, vllm_config.kv_transfer_config.engine_id, parallel
        )

    @property
    def requires_kv_delivery(self) -> bool:
        """A save that is dropped is a later miss, no more."""
        return False

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._worker is None:
            return
        try:
            layout, regions = describe_layout(kv_caches, self._vllm_config, self._kv_cache_config)
        except DeclinedError as error:
            say_declined(self._vllm_config.kv_transfer_config.engine_id, str(error))
            self._worker = None
            return
        self._worker.register(layout, regions, layers_by_index(kv_caches, layout))

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Before the forward pass: what it will save is known."""
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            self._worker.announce_stores(self._meta())

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._worker is None:
            return
        meta = self._meta()
        self._is_idle_step = getattr(forward_context, "attn_metadata", None) is None
        if meta.loads:
            if self._config.load_mode == "sync":
                self._worker.load_synchronously(meta)
            else:
                self._worker.load_asynchronously(meta)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are whole before the forward pass, or belong to requests that wait."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Pages are saved whole, after the forward pass."""

    def wait_for_save(self) -> None:
        if self._worker is not None and self.has_connector_metadata():
            meta = self._meta()
            if meta.stores:
                self._worker.submit_stores(meta)
                meta.stores = []

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None:
            return KVConnectorTransferResults()
        # Under speculative decoding not every pipeline rank is asked to wait for saves.
        self.wait_for_save()
        if self._is_idle_step:
            self._worker.wait_for_load()
        ended, failed = self._worker.take_finished_loads()
        return KVConnectorTransferResults(None, ended or None, failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_bad_block_ids() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._worker.take_report() if self._worker is not None else None

    def _meta(self) -> MPConnectorMetadata:
        meta = self._get_connector_metadata()
        if not isinstance(meta, MPConnectorMetadata):
            raise TypeError(f"unexpected connector metadata {type(meta).__name__}")
        return meta

    # Scheduler side

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        if self._scheduler is not None:
            self._scheduler.saves.bind(gpu_block_pool)

    def on_new_request(self, request: Request) -> None:
        if self._scheduler is not None:
            self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        return self._scheduler.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            block_ids = blocks.get_block_ids()[0] if num_external_tokens else ()
            self._scheduler.update_state_after_alloc(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        if self._scheduler is None:
            return MPConnectorMetadata()
        return self._scheduler.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        if self._scheduler is not None:
            self._scheduler.update_connector_output(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Never delays a free: saves hold their blocks themselves."""
        if self._scheduler is None:
            return False, None
        return False, self._scheduler.request_finished(request)

    def has_pending_push_work(self) -> bool:
        """Keeps the engine stepping until saves have reported, so that their blocks are let go."""
        return self._scheduler is not None and self._scheduler.saves.num_open > 0

    def take_events(self) -> Iterable[KVCacheEvent]:
        if self._scheduler is None or self._scheduler.planner.events is None:
            return ()
        return self._scheduler.planner.events.take()

    def reset_cache(self) -> bool | None:
        if self._scheduler is None:
            return None
        return self._scheduler.reset_cache(self._config.mq_timeout_s)

    # Both sides

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self._worker is not None:
            return self._worker.stats.drain()
        return self._scheduler.stats.drain() if self._scheduler is not None else None

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
        if self._scheduler is not None:
            self._scheduler.shutdown()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return MPConnectorStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> KVConnectorPromMetrics | None:
        return MPConnectorPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
