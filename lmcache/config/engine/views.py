"""Groups of settings as components take them: frozen, with units, made of one moment's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.extra import ExtraSettings, read_extra
from lmcache.config.scripts import ScriptSettings
from lmcache.core.sizes import GIB


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """`size_bytes` 0: no pool. `reserve_bytes`: what must stay free of the machine's memory."""

    size_bytes: int
    reserve_bytes: int


def pool_settings(config: LMCacheEngineConfig, stores_for_all_ranks: bool = False) -> PoolSettings:
    """`stores_for_all_ranks`: of the one rank that stores, where only one does."""
    size_gb = config.max_local_cpu_size
    first_rank_gb = read_extra(config.extra_config).first_rank_max_local_cpu_size
    if stores_for_all_ranks and first_rank_gb is not None:
        size_gb = first_rank_gb
    return PoolSettings(max(0, int(size_gb * GIB)), int(config.reserve_local_cpu_size * GIB))


def hash_algorithm(config: LMCacheEngineConfig) -> str:
    """By the name that `core.hashing` knows."""
    return "blake3" if config.pre_caching_hash_algorithm == "builtin" else config.pre_caching_hash_algorithm


@dataclass(frozen=True, slots=True)
class InternalAPISettings:
    """The HTTP API of scheduler (index 0) and workers (index N + 1)."""

    is_enabled: bool
    host: str
    port_start: int
    indexes: tuple[int, ...]
    socket_path_prefix: str | None
    auth_token_file: str | None
    redact_env: bool
    disable: tuple[str, ...]
    ssl_certfile: str | None
    ssl_keyfile: str | None
    scripts: ScriptSettings
    is_access_logged: bool
    log_level: str

    def serves(self, index: int) -> bool:
        """Whether the process with this index is to listen."""
        return self.is_enabled and (not self.indexes or index in self.indexes)

    def port(self, index: int) -> int:
        return self.port_start + index

    def socket_path(self, index: int) -> str | None:
        """None: listen on TCP."""
        return f"{self.socket_path_prefix}_{self.port(index)}" if self.socket_path_prefix else None


def internal_api_settings(config: LMCacheEngineConfig) -> InternalAPISettings:
    extra = read_extra(config.extra_config)
    return InternalAPISettings(
        is_enabled=config.internal_api_server_enabled,
        host=config.internal_api_server_host,
        port_start=config.internal_api_server_port_start,
        indexes=config.internal_api_server_include_index_list or (),
        socket_path_prefix=config.internal_api_server_socket_path_prefix,
        auth_token_file=config.internal_api_server_auth_token_file,
        redact_env=config.internal_api_server_redact_env,
        disable=config.internal_api_server_disable,
        ssl_certfile=config.internal_api_server_ssl_certfile,
        ssl_keyfile=config.internal_api_server_ssl_keyfile,
        scripts=ScriptSettings(config.script_allowed_imports or (), config.internal_api_server_script_timeout_seconds),
        is_access_logged=extra.internal_api_server_access_log,
        log_level=extra.internal_api_server_log_level,
    )


@dataclass(frozen=True, slots=True)
class ChunkStatisticsSettings:
    """What a recorder is made with. `extra` has what only one strategy reads."""

    strategy: str
    is_started: bool
    queue_capacity: int
    hashes_early: bool
    extra: ExtraSettings


def chunk_statistics_settings(config: LMCacheEngineConfig) -> ChunkStatisticsSettings:
    extra = read_extra(config.extra_config)
    return ChunkStatisticsSettings(
        strategy=config.chunk_statistics_strategy,
        is_started=config.chunk_statistics_auto_start_statistics,
        queue_capacity=extra.chunk_statistics_async_queue_capacity,
        hashes_early=extra.chunk_statistics_async_preprocess_chunks,
        extra=extra,
    )
