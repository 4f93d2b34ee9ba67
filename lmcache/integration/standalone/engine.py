"""The engine of one rank over synthetic pages, with its lookup server and its internal API: one object to start and
stop. Everything an in-process worker has, but the inference engine around it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.views import internal_api_settings
from lmcache.core.layout import KVLayout
from lmcache.embedded.config import Rank
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.gc_switch import GCSwitch
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.lookup.switch import ServerSwitch
from lmcache.embedded.manager import WORKER, EmbeddedManager, EngineMetadata
from lmcache.embedded.metric_sources import watch_engine, watch_threads
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.embedded.pool import private_folder, sweep_private_pools
from lmcache.integration.standalone.paged import PagedCache
from lmcache.integration.standalone.settings import StandaloneSettings
from lmcache.integration.vllm.embedded_settings import embedded_config, follow_settings, lookup_address
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.v1.internal_api_server.internal_api import InternalAPI

logger = logging.getLogger(__name__)

# As worker 0 of an inference engine.
API_INDEX = 1


class Standalone:
    """Started and closed by one thread, which may fill the pages anew in between."""

    def __init__(
        self, config: LMCacheEngineConfig, settings: StandaloneSettings, environ: Mapping[str, str], engine_id: str
    ) -> None:
        """Takes its memory, and opens nothing else yet. `engine_id`: as no other engine of this host has it.
        Raises LMCacheError."""
        self.config = config
        self.engine_id = engine_id
        self.settings = settings
        self.pages = PagedCache(settings.shape, settings.block_size, settings.num_blocks, settings.seed)
        address = lookup_address(engine_id, {}, environ)
        self._lookup = ServerSwitch(LookupClientFactory(config, address, 1), 0)
        name = settings.model_name
        self._metrics = EmbeddedMetrics(name, name, WORKER, 0, config.extra_config)
        rank = Rank(name, 1, 0, 0, self.pages.layout)
        sweep_private_pools()
        self.engine = EmbeddedEngine(
            embedded_config(config, 0, False),
            rank,
            CpuCopier([self.pages.pages]),
            private_folder(),
            loads_mock_into_pages=True,
            meter=self._metrics,
        )
        self._metrics.registry.attach(self.engine.metrics)
        watch_engine(self._metrics, lambda: self.engine)
        watch_threads(self._metrics, self.engine.threads)
        self._api = InternalAPI(self._manager(), API_INDEX)
        self._gc: GCSwitch | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """When it returns, the API answers. Raises LMCacheError; then there is nothing to close."""
        try:
            self.engine.start()
            self._gc = GCSwitch(self.config)
            self._unsubscribe = follow_settings(self.config, self._check, self._follow)
            self._lookup.serve(_Target(self.engine, self.pages.layout))
            self._api.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self._unsubscribe()
        if self._gc is not None:
            self._gc.close()
        self._api.stop()
        self._lookup.shut_down()
        self.engine.close()

    def refill(self) -> int:
        """Other bytes in every page, as an engine that computes something else would leave; the seed they are of."""
        self.pages.fill(self.pages.seed + 1)
        return self.pages.seed

    def address(self) -> str:
        """Where the API is, or why it is not."""
        settings = internal_api_settings(self.config)
        path = settings.socket_path(API_INDEX)
        if not self._api.is_serving:
            return "without the internal API (internal_api_server_enabled, internal_api_server_include_index_list)"
        if path is not None:
            return f"unix socket {path}"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{'http' if settings.ssl_certfile is None else 'https'}://{host}:{settings.port(API_INDEX)}"

    def _check(self, wanted: LMCacheEngineConfig) -> None:
        self.engine.check(embedded_config(wanted, 0, False))

    def _follow(self) -> None:
        self.engine.follow(embedded_config(self.config, 0, False))

    def _manager(self) -> EmbeddedManager:
        return EmbeddedManager(
            self.config, self._metadata(), self._metrics.registry, self.engine.threads,
            lambda: self.engine, self.pages.tensors, self._lookup,
        )  # fmt: skip

    def _metadata(self) -> EngineMetadata:
        shape, config = self.settings.shape, self.config
        group = self.pages.layout.groups[0]
        return EngineMetadata(
            model_name=self.settings.model_name,
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=group.dtype,
            kv_shape=(shape.num_layers, 2, config.chunk_size, shape.num_kv_heads, shape.head_size),
            use_mla=False,
            role=WORKER,
            first_rank=0,
            served_model_name=self.settings.model_name,
            chunk_size=config.chunk_size,
            kv_layer_groups_manager=None,
            engine_id=self.engine_id,
        )


class _Target:
    """A `LookupTarget`: the engine, and how its pages lie."""

    def __init__(self, engine: EmbeddedEngine, layout: KVLayout) -> None:
        self._engine = engine
        self._layout = layout

    def introduce(self) -> KVLayout:
        return self._layout

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        return self._engine.lookup(lookup_id, prompt, wait_s)

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        self._engine.lookup_later(lookup_id, prompt, wait_s, on_found)

    def release(self, lookup_ids: Iterable[str]) -> int:
        return self._engine.release(lookup_ids)
