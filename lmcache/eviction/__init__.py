"""Eviction policies: which slot goes next. One pure file per policy; the file's name is its name."""

from __future__ import annotations

import importlib
import pkgutil

from lmcache.errors import ConfigError
from lmcache.eviction.base import EvictionPolicy

_NOT_A_POLICY = {"base"}


def policy_names() -> list[str]:
    """Every policy in this folder, by the name the command line takes."""
    modules = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(
        importlib.import_module(f"{__name__}.{name}").Policy.name for name in modules if name not in _NOT_A_POLICY
    )


def make_policy(name: str) -> EvictionPolicy:
    if name not in policy_names():
        raise ConfigError(f"unknown eviction policy {name!r}; known: {', '.join(policy_names())}")
    policy: EvictionPolicy = importlib.import_module(f"{__name__}.{name.lower()}").Policy()
    return policy
