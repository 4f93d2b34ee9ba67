"""The table of all keys, their aliases, and the nearest known name to an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from lmcache.config.engine.api_keys import APIKeys
from lmcache.config.engine.cache_keys import CacheKeys
from lmcache.config.engine.definition import Definition, FrozenValues, collect
from lmcache.config.engine.foreign_keys import FAMILIES, ForeignKeys
from lmcache.config.engine.lookup_keys import LookupKeys
from lmcache.config.engine.tier_keys import TierKeys


class EngineKeys(CacheKeys, TierKeys, LookupKeys, APIKeys, ForeignKeys, FrozenValues):
    """Every key with its type; the declarations are in the bases, by theme."""


_CONFIG_DEFINITIONS: Mapping[str, Definition] = MappingProxyType(collect(EngineKeys))

ALIASES = {
    "enable_xpyd": "enable_pd",
    "controller_url": "controller_pull_url",
    "lmcache_worker_port": "lmcache_worker_ports",
    "plugin_locations": "runtime_plugin_locations",
    "external_backends": "storage_plugins",
}
FAMILY_ALIASES = {"nixl_": "pd_"}


def canonical(name: str) -> str:
    """The name itself, or that behind an alias."""
    for alias, prefix in FAMILY_ALIASES.items():
        if name.startswith(alias):
            return prefix + name.removeprefix(alias)
    return ALIASES.get(name, name)


def family_of(name: str) -> str | None:
    """The prefix of a group of keys that are known but not listed, if the canonical name belongs to one."""
    if name in _CONFIG_DEFINITIONS:
        return None
    return next((prefix for prefix in FAMILIES if name.startswith(prefix)), None)


def nearest(name: str, cutoff: float = 0.6) -> str | None:
    found = difflib.get_close_matches(name, [*_CONFIG_DEFINITIONS, *ALIASES], n=1, cutoff=cutoff)
    return found[0] if found else None
