"""A worker's process in the in-process mode: its half, its lookup server, and what operators see of its pages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.config import EmbeddedConfig
from lmcache.embedded.kv_tensors import KVTensors
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ServerSwitch
from lmcache.embedded.manager import WORKER
from lmcache.errors import DeclinedError
from lmcache.integration.vllm.embedded_gauges import watch_worker
from lmcache.integration.vllm.embedded_half import EmbeddedHalf
from lmcache.integration.vllm.embedded_settings import embedded_config, follow_settings
from lmcache.integration.vllm.embedded_worker import EmbeddedWorker
from lmcache.integration.vllm.engine_metadata import engine_metadata
from lmcache.integration.vllm.kv_view import view_kv_tensors
from lmcache.integration.vllm.layout import describe_layout
from lmcache.integration.vllm.parallel import ParallelStrategy

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)


class WorkerHalf:
    """Opened and closed by the model runner's thread."""

    def __init__(
        self, config: LMCacheEngineConfig, vllm_config: VllmConfig, parallel: ParallelStrategy, address: LookupAddress
    ) -> None:
        """Raises ConfigError."""
        self._config = config
        self._vllm_config = vllm_config
        self._parallel = parallel
        self._tensors: KVTensors | None = None
        factory = LookupClientFactory(config, address, parallel.world_size)
        lookup = ServerSwitch(factory, parallel.rank)
        half = EmbeddedHalf(
            config, vllm_config, parallel, WORKER, lookup, lambda: self.worker.engine, lambda: self._tensors
        )
        self._half = half
        self.worker = EmbeddedWorker(
            config.lmcache_instance_id, self._engine_config, vllm_config.model_config.model, parallel, lookup,
            half.threads, lambda: config.use_layerwise, lambda: config.blocking_timeout_secs,
            lambda: half.manager.logs_slots, half.meter,
        )  # fmt: skip
        watch_worker(half.meter, self.worker)
        self._unsubscribe = follow_settings(config, self._check, self._follow)
        half.serve()

    def register(self, kv_caches: dict[str, torch.Tensor], kv_cache_config: KVCacheConfig | None) -> None:
        """vLLM's pages are there. Raises ConfigError."""
        try:
            layout, regions = describe_layout(kv_caches, self._vllm_config, kv_cache_config)
        except DeclinedError as error:
            self.worker.decline(str(error))
            return
        self._half.manager.lmcache_engine_metadata = engine_metadata(
            self._vllm_config, self._parallel, WORKER, self._config.chunk_size, layout
        )
        try:
            self._tensors = view_kv_tensors(kv_caches)
        except DeclinedError as error:
            logger.info("pages cannot be shown by the internal API: %s", error)
        self.worker.register(layout, regions)
        if self.worker.engine is not None:
            self._half.meter.registry.attach(self.worker.engine.metrics)

    def close(self) -> None:
        """Idempotent."""
        self._unsubscribe()
        self._half.close()
        self.worker.close()

    def _engine_config(self) -> EmbeddedConfig:
        """Raises ConfigError."""
        return self._described(self._config)

    def _described(self, config: LMCacheEngineConfig) -> EmbeddedConfig:
        return embedded_config(config, self._parallel.rank, self._parallel.stores_for_others)

    def _check(self, wanted: LMCacheEngineConfig) -> None:
        config, engine = self._described(wanted), self.worker.engine
        if engine is not None:
            engine.check(config)

    def _follow(self) -> None:
        engine = self.worker.engine
        if engine is not None:
            engine.follow(self._engine_config())
