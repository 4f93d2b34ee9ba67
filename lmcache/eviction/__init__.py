"""Eviction policies: which slot goes next. One pure file per policy, imported only when asked for."""

from __future__ import annotations

import importlib
import pkgutil

from lmcache.errors import ConfigError
from lmcache.eviction.base import EvictionPolicy

_NOT_A_POLICY = {"base", "slot_lists", "ghosts", "ranked"}


def policy_names() -> list[str]:
    """Every policy in this folder, by its own name."""
    return sorted((_name_in(module) for module in _modules()), key=str.lower)


def policy_name(name: str) -> str:
    """The name as the policy itself writes it, whatever its case and hyphens; ConfigError if there is none."""
    return _name_in(_module_of(name))


def make_policy(name: str) -> EvictionPolicy:
    policy: EvictionPolicy = importlib.import_module(_module_of(name)).Policy()
    return policy


def _modules() -> list[str]:
    return [f"{__name__}.{info.name}" for info in pkgutil.iter_modules(__path__) if info.name not in _NOT_A_POLICY]


def _name_in(module: str) -> str:
    name: str = importlib.import_module(module).Policy.name
    return name


def _module_of(name: str) -> str:
    """The file of a policy: its name in lower case, with or without underscores."""
    for module in _modules():
        if _plain(module.rpartition(".")[2]) == _plain(name):
            return module
    raise ConfigError(f"unknown eviction policy {name!r}; known: {', '.join(policy_names())}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
