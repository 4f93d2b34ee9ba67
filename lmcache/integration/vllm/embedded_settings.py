"""From the configuration of the in-process mode to what the engine and the lookups are told."""

from __future__ import annotations

from collections.abc import Mapping

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.tiers import tiers
from lmcache.config.engine.views import pool_settings
from lmcache.embedded.config import Backend, EmbeddedConfig
from lmcache.embedded.lookup.address import DEFAULT_FOLDER, LookupAddress
from lmcache.errors import ConfigError
from lmcache.l2.registry import parse_adapter_object

# Settings that ask for what this mode does not do: value that asks for nothing, and what happens instead.
_NOT_HONOURED: Mapping[str, tuple[object, str]] = {
    "save_unfull_chunk": (False, "only whole chunks are saved"),
    "use_layerwise": (False, "chunks are loaded before the forward pass and saved after it"),
    "enable_async_loading": (False, "lookups wait for the tiers"),
    "enable_scheduler_bypass_lookup": (False, "lookups ask the workers"),
    "lookup_server_worker_ids": (None, "all ranks are asked"),
    "hit_miss_ratio": (None, "hits are not limited"),
    "enable_chunk_statistics": (False, "chunks are not counted"),
    "retrieve_locations": (None, "all tiers are looked up"),
    "store_location": (None, "all tiers are stored to"),
    "internal_api_server_enabled": (False, "there is no internal API"),
    "py_enable_gc": (True, "the garbage collector is left as it is"),
}


def not_honoured(config: LMCacheEngineConfig) -> list[str]:
    """One line for each setting that will not do what its writer hopes."""
    return [
        f"{name} has no effect: {instead}"
        for name, (nothing, instead) in _NOT_HONOURED.items()
        if getattr(config, name) not in (nothing, ())
    ]


def embedded_config(config: LMCacheEngineConfig, rank: int, stores_for_others: bool) -> EmbeddedConfig:
    """`stores_for_others`: this rank alone writes what all hold. Raises ConfigError."""
    pool = pool_settings(config, stores_for_others)
    backends = [Backend(tier.name, parse_adapter_object(dict(tier.adapter), tier.name)) for tier in tiers(config, rank)]
    return EmbeddedConfig(
        chunk_size=config.chunk_size,
        pool_bytes=pool.size_bytes,
        reserve_bytes=pool.reserve_bytes,
        keeps_l1=config.local_cpu,
        eviction_policy=config.cache_policy,
        backends=tuple(backends),
        lock_ttl_s=config.pin_timeout_sec,
        lock_check_interval_s=config.pin_check_interval_sec,
    )


def lookup_address(engine_id: str, extra: Mapping[str, object], environment: Mapping[str, str]) -> LookupAddress:
    """Raises ConfigError."""
    port = extra.get("lmcache_rpc_port", 0)
    if isinstance(port, bool) or not isinstance(port, int | str):
        raise ConfigError(f"lmcache_rpc_port must be a number or a text (got {port!r})")
    return LookupAddress(environment.get("VLLM_RPC_BASE_PATH") or DEFAULT_FOLDER, engine_id, port)


def check_chunk_size(config: LMCacheEngineConfig, block_size: int) -> None:
    """Raises ConfigError."""
    chunk_size = config.chunk_size
    if chunk_size % block_size:
        fitting = max(block_size, chunk_size // block_size * block_size)
        raise ConfigError(
            f"chunk_size {chunk_size} is not a multiple of vLLM's block size {block_size}: set chunk_size to "
            f"{fitting}, or start vLLM with a --block-size that divides {chunk_size}"
        )
