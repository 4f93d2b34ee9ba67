"""The scheduler's process in the in-process mode: its half, its lookup client, and an engine of its own over tiers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.views import hash_algorithm
from lmcache.core.hashing import make_algorithm
from lmcache.core.keys import make_kv_rank
from lmcache.embedded.config import EmbeddedConfig
from lmcache.embedded.lookup.address import LookupAddress
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ClientSwitch
from lmcache.embedded.manager import SCHEDULER, ChunkStatistics
from lmcache.embedded.metric_sources import watch_statistics
from lmcache.embedded.tier_engine import TierEngine
from lmcache.errors import ConfigError
from lmcache.integration.vllm.embedded_gauges import watch_scheduler
from lmcache.integration.vllm.embedded_half import EmbeddedHalf
from lmcache.integration.vllm.embedded_scheduler import EmbeddedScheduler, FindPrefixCache, ForgetCached
from lmcache.integration.vllm.embedded_settings import embedded_config, follow_settings
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.telemetry.metrics import MetricRegistry

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)


class SchedulerHalf:
    """Opened and closed by one thread. `facts` decide KV values; `forget_cached` and `find_prefix_cache` as for
    `EmbeddedScheduler`."""

    def __init__(
        self,
        config: LMCacheEngineConfig,
        vllm_config: VllmConfig,
        parallel: ParallelStrategy,
        address: LookupAddress,
        facts: dict[str, object],
        forget_cached: ForgetCached,
        find_prefix_cache: FindPrefixCache,
    ) -> None:
        """Raises ConfigError."""
        self._config = config
        self._parallel = parallel
        self._model_name = vllm_config.model_config.model
        factory = LookupClientFactory(config, address, parallel.world_size, self._open_tier_engine)
        self._lookup = ClientSwitch(factory)
        self._half = EmbeddedHalf(
            config, vllm_config, parallel, SCHEDULER, self._lookup, lambda: self._engine
        )  # fmt: skip
        transfer, vllm_parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
        num_in_flight = vllm_parallel.pipeline_parallel_size + bool(vllm_config.scheduler_config.async_scheduling)
        try:
            self._lookup.create(is_dry_run=False)
        except ConfigError:
            self._half.close()
            raise
        self.scheduler = EmbeddedScheduler(
            config, self._lookup.client, make_algorithm(hash_algorithm(config)), facts, parallel.world_size,
            vllm_config.cache_config.block_size, transfer.is_kv_consumer, transfer.is_kv_producer,
            num_in_flight, forget_cached, find_prefix_cache=find_prefix_cache, meter=self._half.meter,
        )  # fmt: skip
        watch_scheduler(self._half.meter, self.scheduler)
        watch_statistics(self._half.meter, self._statistics)
        self._unsubscribe = follow_settings(config, self._check, self._follow)
        self.scheduler.find_root()
        self._half.serve()

    def close(self) -> None:
        """Idempotent."""
        self._unsubscribe()
        self._half.close()
        self._lookup.shut_down()

    @property
    def _engine(self) -> TierEngine | None:
        engine = self._lookup.engine
        return engine if isinstance(engine, TierEngine) else None

    def _statistics(self) -> dict[str, object] | None:
        client = self._lookup.current
        return client.status() if isinstance(client, ChunkStatistics) else None

    def _open_tier_engine(self) -> TierEngine:
        """Raises ConfigError."""
        parallel = self._parallel
        sources = [parallel.at(rank).source_rank for rank in range(parallel.world_size)]
        groups = [(make_kv_rank(parallel.world_size, source, parallel.world_size, source), 0) for source in sources]
        registry = MetricRegistry()
        detach = self._half.meter.registry.attach(registry)
        try:
            engine = _SchedulerEngine(self._configs(self._config), self._model_name, groups, registry, detach)
            engine.start()
        except BaseException:
            detach()
            raise
        return engine

    def _configs(self, config: LMCacheEngineConfig) -> list[EmbeddedConfig]:
        """Of every rank. Raises ConfigError."""
        return [
            embedded_config(config, rank, self._parallel.at(rank).stores_for_others)
            for rank in range(self._parallel.world_size)
        ]

    def _follow(self) -> None:
        engine = self._engine
        if engine is not None:
            engine.follow(self._configs(self._config))

    def _check(self, wanted: LMCacheEngineConfig) -> None:
        configs, engine = self._configs(wanted), self._engine
        if engine is not None:
            engine.check(configs)


class _SchedulerEngine(TierEngine):
    """Its metrics are shown among the scheduler's for as long as it is open."""

    def __init__(
        self,
        configs: Sequence[EmbeddedConfig],
        model_name: str,
        rank_groups: Sequence[tuple[int, int]],
        metrics: MetricRegistry,
        detach: Callable[[], None],
    ) -> None:
        super().__init__(configs, model_name, rank_groups, metrics)
        self._detach = detach

    def close(self) -> None:
        self._detach()
        super().close()
