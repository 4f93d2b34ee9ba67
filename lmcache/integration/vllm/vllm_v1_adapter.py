"""What vLLM's built-in `LMCacheConnectorV1` hands its hooks to: the in-process mode.

Thin: each hook goes to the scheduler half or the worker half. What cannot be served is declined with one
line, and vLLM runs on without cache. vLLM hands on no end: both halves close with their process.
"""

from __future__ import annotations

import os
import uuid
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole

from lmcache.config.engine.loading import load_engine_config
from lmcache.core.keys import check_model_name
from lmcache.errors import ConfigError, LMCacheError
from lmcache.integration.vllm.declining import say_declined
from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
from lmcache.integration.vllm.embedded_scheduler import EmbeddedScheduler, no_prefix_cache
from lmcache.integration.vllm.embedded_scheduler_half import SchedulerHalf
from lmcache.integration.vllm.embedded_settings import check_chunk_size, lookup_address, shares_ranks
from lmcache.integration.vllm.embedded_worker import EmbeddedWorker, StoredEvent
from lmcache.integration.vllm.embedded_worker_half import WorkerHalf
from lmcache.integration.vllm.layout import unsupported_reason
from lmcache.integration.vllm.model_facts import model_facts
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.utils import mla_enabled
from lmcache.utils import init_logger

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)

# Before the process joins its children, which is at 0.
_EXIT_PRIORITY = 10


class LMCacheConnectorV1Impl:
    """One half, by `role`. `parent_connector` is vLLM's connector, which knows the KV cache."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, parent_connector: KVConnectorBase_V1) -> None:
        self._vllm_config = vllm_config
        self._parent = parent_connector
        self._scheduler: EmbeddedScheduler | None = None
        self._worker: EmbeddedWorker | None = None
        self._worker_half: WorkerHalf | None = None
        self._meta: EmbeddedMetadata | None = None
        try:
            self._read_config(role)
            self._open(role)
        except ConfigError as error:
            raise ValueError(f"lmcache: {error}") from error

    def _read_config(self, role: KVConnectorRole) -> None:
        """Warnings are told once, by the scheduler's half."""
        transfer = self._vllm_config.kv_transfer_config
        extra = transfer.kv_connector_extra_config or {}
        # Scheduler and workers go by one name where none was given: vLLM's id of this engine makes it.
        config, warnings = load_engine_config(
            os.environ, extra, make_id=lambda: uuid.uuid5(uuid.NAMESPACE_OID, str(transfer.engine_id)).hex
        )
        self.config = config
        if role == KVConnectorRole.SCHEDULER:
            for warning in warnings:
                logger.warning("%s", warning)
        check_chunk_size(self.config, self._vllm_config.cache_config.block_size)
        is_mla = shares_ranks(config, mla_enabled(self._vllm_config.model_config))
        self._parallel = ParallelStrategy.of(self._vllm_config, is_mla, 0)
        self._address = lookup_address(transfer.engine_id, extra, os.environ)

    def _open(self, role: KVConnectorRole) -> None:
        reason = unsupported_reason(self._vllm_config, self._parent._kv_cache_config)
        if reason is not None:
            say_declined(self._vllm_config.kv_transfer_config.engine_id, reason)
        elif role == KVConnectorRole.SCHEDULER:
            self._open_scheduler()
        else:
            self._open_worker()

    def _open_scheduler(self) -> None:
        try:
            facts = model_facts(self._vllm_config, None)
            check_model_name(self._vllm_config.model_config.model)
        except LMCacheError as error:
            say_declined(self._vllm_config.kv_transfer_config.engine_id, str(error))
            return
        self._choose_recompute()
        half = SchedulerHalf(
            self.config, self._vllm_config, self._parallel, self._address, facts, self._forget_cached,
            no_prefix_cache if self._keeps_on_reset() else self._find_prefix_cache,
        )  # fmt: skip
        Finalize(self, half.close, exitpriority=_EXIT_PRIORITY)
        self._scheduler = half.scheduler

    def _open_worker(self) -> None:
        from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

        rank = get_pp_group().rank_in_group * self._parallel.tensor_size + get_tensor_model_parallel_rank()
        half = WorkerHalf(self.config, self._vllm_config, self._parallel.at(rank), self._address)
        Finalize(self, half.close, exitpriority=_EXIT_PRIORITY)
        self._worker_half, self._worker = half, half.worker

    def _choose_recompute(self) -> None:
        """A promised load that fails must be recomputed, not end the user's request.

        `fail` is vLLM's default, and a user who wrote it there cannot be told from one who wrote
        nothing: whoever means it says so with a key of ours too.
        """
        transfer = self._vllm_config.kv_transfer_config
        extra = transfer.kv_connector_extra_config or {}
        if transfer.kv_load_failure_policy != "fail" or extra.get("load_failure_policy") == "fail":
            return
        transfer.kv_load_failure_policy = "recompute"
        logger.info(
            "kv_load_failure_policy is set to recompute: a load that fails costs time, not the request "
            "(load_failure_policy=fail in kv_connector_extra_config leaves it as it was)"
        )

    def _keeps_on_reset(self) -> bool:
        """For those who reset vLLM's prefix cache only to measure, and never change its weights."""
        return (self._vllm_config.kv_transfer_config.kv_connector_extra_config or {}).get("keep_on_reset") is True

    def _find_prefix_cache(self) -> object | None:
        """vLLM makes a new one of these with every reset of its prefix cache."""
        manager = getattr(self._parent, "_kv_cache_manager", None)
        return getattr(getattr(manager, "block_pool", None), "cached_block_hash_to_block", None)

    def _forget_cached(self, block_ids: set[int]) -> bool:
        manager = getattr(self._parent, "_kv_cache_manager", None)
        if manager is None:
            return False
        manager.evict_blocks(block_ids)
        return True

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._worker_half is None:
            return
        try:
            self._worker_half.register(kv_caches, self._parent._kv_cache_config)
        except ConfigError as error:
            raise ValueError(f"lmcache: {error}") from error

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        if not isinstance(connector_metadata, EmbeddedMetadata):
            raise TypeError(f"unexpected connector metadata {type(connector_metadata).__name__}")
        self._meta = connector_metadata
        if self._worker is not None:
            self._worker.begin(connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._worker is not None and self._meta is not None:
            self._worker.load(self._meta)

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._worker is not None:
            self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.save_layer(layer_name)

    def wait_for_save(self) -> None:
        meta, self._meta = self._meta, None
        if self._worker is not None and meta is not None:
            self._worker.save(meta)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Nothing goes on behind a step's back."""
        return None, None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_bad_block_ids() if self._worker is not None else set()

    def get_kv_events(self) -> list[StoredEvent]:
        return self._worker.take_events() if self._worker is not None else []

    # Scheduler side

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> int | None:
        if self._scheduler is None:
            return 0
        return self._scheduler.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.update_state_after_alloc(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        if self._scheduler is None:
            return EmbeddedMetadata()
        return self._scheduler.build_connector_meta(scheduler_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Never delays a free: a save is over when its step is."""
        if self._scheduler is None:
            return False, None
        return False, self._scheduler.request_finished(request)
