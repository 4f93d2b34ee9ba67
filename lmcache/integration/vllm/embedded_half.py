"""What each half of the in-process mode has around its work: metrics, switches, and the internal API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.embedded.gc_switch import GCSwitch
from lmcache.embedded.kv_tensors import KVTensors
from lmcache.embedded.lookup.base import LookupSwitch
from lmcache.embedded.manager import SCHEDULER, EmbeddedManager
from lmcache.embedded.metric_sources import watch_threads
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.embedded.operations import CacheOperations
from lmcache.errors import LMCacheError
from lmcache.integration.vllm.engine_metadata import engine_metadata
from lmcache.integration.vllm.inference_info import VLLMInference
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.v1.internal_api_server.internal_api import InternalAPI

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

_SCHEDULER_INDEX = 0


class EmbeddedHalf:
    """`find_engine` and `find_kv_tensors` as for `EmbeddedManager`. One thread opens and closes it."""

    def __init__(
        self,
        config: LMCacheEngineConfig,
        vllm_config: VllmConfig,
        parallel: ParallelStrategy,
        role: str,
        lookup: LookupSwitch,
        find_engine: Callable[[], CacheOperations | None],
        find_kv_tensors: Callable[[], KVTensors | None] = lambda: None,
    ) -> None:
        """Raises ConfigError."""
        metadata = engine_metadata(vllm_config, parallel, role, config.chunk_size)
        self.meter = EmbeddedMetrics(
            metadata.model_name, metadata.served_model_name, role, parallel.rank, config.extra_config
        )
        self.threads = PeriodicThreadRegistry()
        watch_threads(self.meter, self.threads)
        self.manager = EmbeddedManager(
            config, metadata, self.meter.registry, self.threads, find_engine, find_kv_tensors, lookup,
            VLLMInference(vllm_config),
        )  # fmt: skip
        self._gc = GCSwitch(config)
        index = _SCHEDULER_INDEX if role == SCHEDULER else parallel.rank + 1
        # Data parallel engines share a host and its ports: the first of them answers.
        self._api = None if vllm_config.parallel_config.data_parallel_rank else InternalAPI(self.manager, index)

    def serve(self) -> None:
        """Open the internal API where the configuration wants it. vLLM runs on without, if that is not possible."""
        if self._api is None:
            return
        try:
            self._api.start()
        except LMCacheError as error:
            logger.warning("the internal API is not served: %s", error)

    def close(self) -> None:
        """Idempotent."""
        if self._api is not None:
            self._api.stop()
        self._gc.close()
