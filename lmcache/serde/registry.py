"""Serdes by name. A module is imported when it is asked for, since its library may not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from lmcache.errors import ConfigError

SERDE_NAMES = ("raw", "zstd", "fp8", "int8", "aesgcm")


def serde_module(name: str) -> ModuleType:
    """The module with `Config` and `make`. Raises ConfigError."""
    if name not in SERDE_NAMES:
        raise ConfigError(f"unknown serde type {name!r}; known types: {', '.join(SERDE_NAMES)}")
    try:
        return importlib.import_module(f"lmcache.serde.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serde {name} needs the library {error.name}, which is not installed: pip install 'lmcache[serde]'"
        ) from error
