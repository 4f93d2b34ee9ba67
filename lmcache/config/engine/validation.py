"""What single keys cannot tell: combinations that cannot be honoured, or that do not do what they seem to."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from lmcache.config.checks import is_loopback
from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.extra import EXTRA_DEFINITIONS, read_extra
from lmcache.config.engine.tiers import disk_tier, remote_tiers, tiers
from lmcache.errors import ConfigError

L1 = "LocalCPUBackend"
# So near to a known name that it is a slip of the pen; extra_config may hold what plug-ins read.
_NEAR_EXTRA = 0.85


def check_combinations(config: LMCacheEngineConfig) -> None:
    """Raises ConfigError."""
    _check_locations(config)
    if config.enable_scheduler_bypass_lookup and not tiers(config):
        raise ConfigError(
            "enable_scheduler_bypass_lookup: the scheduler can look into L2 tiers alone, and none is configured "
            "(local_disk with max_local_disk_size, remote_url or remote_storage_plugins)"
        )
    if config.internal_api_server_ssl_keyfile and not config.internal_api_server_ssl_certfile:
        raise ConfigError(
            "internal_api_server_ssl_keyfile needs internal_api_server_ssl_certfile, the certificate of that key"
        )


def _check_locations(config: LMCacheEngineConfig) -> None:
    """A tier that does not exist would make every lookup miss, or nothing be stored."""
    configured = [L1, *(tier.name for tier in tiers(config))]
    for key in ("retrieve_locations", "store_location"):
        value = getattr(config, key)
        for name in (value,) if isinstance(value, str) else value or ():
            if name not in configured:
                raise ConfigError(f"{key}: {name} is not configured (there are: {', '.join(configured)})")


def warnings_about(config: LMCacheEngineConfig, given: Collection[str]) -> list[str]:
    """One line for each; `given` names the keys that somebody set."""
    lines = []
    if "pre_caching_hash_algorithm" in given and config.pre_caching_hash_algorithm == "builtin":
        lines.append("pre_caching_hash_algorithm builtin is blake3 here: Python's own hash differs between processes")
    if config.local_disk and not config.max_local_disk_size:
        lines.append("local_disk has no effect: max_local_disk_size is 0")
    if config.max_local_disk_size and not config.local_disk:
        lines.append("max_local_disk_size has no effect: local_disk is not set")
    if config.remote_serde != "naive" and not remote_tiers(config):
        lines.append("remote_serde has no effect: there is no remote tier")
    if config.max_local_cpu_size <= 0 and disk_tier(config) is None and not remote_tiers(config):
        lines.append("nothing is cached: max_local_cpu_size is not above 0, and there is no other tier")
    return lines + _api_warnings(config) + _extra_warnings(config)


def _api_warnings(config: LMCacheEngineConfig) -> list[str]:
    is_reachable = config.internal_api_server_enabled and not config.internal_api_server_socket_path_prefix
    if not is_reachable or is_loopback(config.internal_api_server_host) or config.internal_api_server_auth_token_file:
        return []
    return [
        f"internal_api_server_host {config.internal_api_server_host} lets other hosts call the internal API without "
        "a token: set internal_api_server_auth_token_file as well"
    ]


def _extra_warnings(config: LMCacheEngineConfig) -> list[str]:
    extra = config.extra_config or {}
    values = read_extra(extra)
    lines = []
    for name in extra:
        definition = EXTRA_DEFINITIONS.get(name)
        if definition is None:
            near = difflib.get_close_matches(name, list(EXTRA_DEFINITIONS), n=1, cutoff=_NEAR_EXTRA)
            lines += [f"unknown key {name} in extra_config; did you mean {near[0]}?"] if near else []
        elif definition.no_effect and definition.asks(getattr(values, name)):
            lines.append(f"{name} in extra_config has no effect: {definition.no_effect}")
    return lines
