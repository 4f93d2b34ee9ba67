"""From the configuration of the in-process mode to what the engine and the lookups are told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from lmcache.config.engine import Change, LMCacheEngineConfig
from lmcache.config.engine.extra import read_extra
from lmcache.config.engine.tiers import tiers
from lmcache.config.engine.views import hash_algorithm, pool_settings
from lmcache.embedded.config import Backend, EmbeddedConfig
from lmcache.embedded.lookup.address import DEFAULT_FOLDER, LookupAddress
from lmcache.errors import ConfigError
from lmcache.l2.registry import parse_adapter_object
from lmcache.storage.breaker import BreakerConfig

logger = logging.getLogger(__name__)

# What `embedded_config` reads, and an engine can follow while it runs.
_FOLLOWED_KEYS = (
    "local_cpu", "cache_policy", "local_disk", "local_disk_path_sharding", "max_local_disk_size", "remote_url",
    "remote_serde", "remote_storage_plugins", "extra_config", "retrieve_locations", "store_location",
    "pin_timeout_sec", "pin_check_interval_sec", "blocking_timeout_secs",
)  # fmt: skip


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
        blocking_timeout_s=config.blocking_timeout_secs,
        retrieve_locations=config.retrieve_locations or None,
        store_location=config.store_location,
        hash_algorithm=hash_algorithm(config),
        breaker=_breaker(config),
    )


def follow_settings(
    config: LMCacheEngineConfig, check: Callable[[LMCacheEngineConfig], None], follow: Callable[[], None]
) -> Callable[[], None]:
    """Whenever a setting is to change which an engine takes from `embedded_config` while it runs, `check` is given
    what is wanted, and `follow` is called once it is so. Both may raise ConfigError. What is returned ends that."""

    def on_change(change: Change) -> None:
        try:
            follow()
        except ConfigError as error:
            logger.warning("%s changed, and the engine cannot follow: %s", change.key, error)

    ends = (config.check(_FOLLOWED_KEYS, check), config.subscribe(_FOLLOWED_KEYS, on_change))

    def end() -> None:
        for each in ends:
            each()

    return end


def _breaker(config: LMCacheEngineConfig) -> BreakerConfig:
    """As usual, where extra_config does not say otherwise."""
    extra, usual = read_extra(config.extra_config), BreakerConfig()
    pause_s = extra.waiting_time_for_recovery
    return BreakerConfig(
        usual.failures_max if extra.get_blocking_failed_threshold is None else extra.get_blocking_failed_threshold,
        usual.pause_s if pause_s is None else pause_s,
        usual.pause_s_max if pause_s is None else pause_s,
    )


def shares_ranks(config: LMCacheEngineConfig, is_mla: bool) -> bool:
    """Whether one rank stores what all tensor ranks hold. Raises ConfigError where they do not hold the same."""
    asked = read_extra(config.extra_config).save_only_first_rank
    if asked and not is_mla:
        raise ConfigError(
            "save_only_first_rank in extra_config: ranks of this model hold different KV, and each must store its own"
        )
    return is_mla and asked is not False


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
