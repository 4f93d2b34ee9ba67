"""From the name of a class to an adapter. What goes wrong in somebody else's module is said with its name."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from lmcache.errors import ConfigError, LMCacheError
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.plugin.config import PluginConfig
from lmcache.l2.registry import make_settings


def make_plugin(config: PluginConfig, context: AdapterContext) -> L2Adapter:
    """Raises ConfigError."""
    module = _import(config.module_path)
    adapter_class = _class(module, config.class_name, "class_name")
    if not issubclass(adapter_class, L2Adapter):
        raise ConfigError(f"{config.module_path}.{config.class_name} is not a subclass of lmcache.l2.base.L2Adapter")
    missing = sorted(getattr(adapter_class, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{config.module_path}.{config.class_name} does not implement {', '.join(missing)}")
    settings = _settings(config, module)
    try:
        adapter: L2Adapter = adapter_class(settings, context, config.capacity_bytes)
    except LMCacheError:
        raise
    except Exception as error:  # somebody else's code: a mistake in it is told like one in the settings
        raise ConfigError(
            f"{config.module_path}.{config.class_name}(settings, context, capacity_bytes) "
            f"failed: {type(error).__name__}: {error}"
        ) from error
    return adapter


def _import(module_path: str) -> ModuleType:
    try:
        return importlib.import_module(module_path)
    except Exception as error:  # likewise
        raise ConfigError(f"module_path {module_path!r} cannot be imported: {type(error).__name__}: {error}") from error


def _class(module: ModuleType, name: str, field: str) -> Any:
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ConfigError(f"{field} {name!r}: module {module.__name__} has no such class")
    return found


def _settings(config: PluginConfig, module: ModuleType) -> object:
    if config.config_class_name is None:
        return config.adapter_params
    settings_class = _class(module, config.config_class_name, "config_class_name")
    if not dataclasses.is_dataclass(settings_class):
        raise ConfigError(f"config_class_name {config.config_class_name!r} is not a dataclass")
    try:
        return make_settings(settings_class, config.adapter_params)
    except ConfigError as error:
        raise ConfigError(f"adapter_params: {error}") from error
