"""Adapter types and their settings: from one `--l2-adapter` JSON text to an adapter.

A folder of this package with `TYPE_NAMES`, `Config` and `make` is an adapter; so is a module
behind an entry point of the group `lmcache.l2`. Heavy libraries are imported by `make` alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import lmcache.l2
from lmcache.errors import ConfigError
from lmcache.eviction import policy_names
from lmcache.l2.base import AdapterContext, EvictionConfig, L2Adapter
from lmcache.l2.fields import flag, fraction
from lmcache.l2.serde_wrapper import SerdeSpec, wrap
from lmcache.serde.registry import serde_module

ENTRY_POINT_GROUP = "lmcache.l2"


@dataclass(frozen=True, slots=True)
class L2AdapterSpec:
    """One configured adapter. `settings` is the dataclass of its type; `serde` is applied outermost first."""

    type: str
    settings: Any
    eviction: EvictionConfig | None = None
    persist_enabled: bool = True
    serde: tuple[SerdeSpec, ...] = ()
    shared: bool = False


_COMMON_FIELDS = {"type", "eviction", "persist_enabled", "serde", "shared", "affinity_tag"}


@functools.cache
def adapter_modules() -> dict[str, ModuleType]:
    """Every known type name and the module that makes it."""
    found: dict[str, ModuleType] = {}
    folders = sorted(info.name for info in pkgutil.iter_modules(lmcache.l2.__path__) if info.ispkg)
    modules = [importlib.import_module(f"{lmcache.l2.__name__}.{name}") for name in folders]
    found_points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    modules += [_load_entry_point(entry) for entry in found_points]
    for module in modules:
        for name in module.TYPE_NAMES:
            if name in found:
                raise ConfigError(f"L2 type {name!r} is defined by {found[name].__name__} and by {module.__name__}")
            found[name] = module
    return found


def _load_entry_point(entry: EntryPoint) -> ModuleType:
    """Raises ConfigError."""
    try:
        module: ModuleType = entry.load()
    except Exception as error:  # somebody else's code: what is wrong with it is told with its name
        raise ConfigError(
            f"entry point {entry.name!r} of {ENTRY_POINT_GROUP} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    missing = [name for name in ("TYPE_NAMES", "Config", "make") if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"entry point {entry.name!r} of {ENTRY_POINT_GROUP} has no {', '.join(missing)}")
    return module


def type_names() -> list[str]:
    return sorted(adapter_modules())


def parse_adapters(texts: Sequence[str]) -> tuple[L2AdapterSpec, ...]:
    """One spec per JSON text. Raises ConfigError that names the position and the field."""
    return tuple(parse_adapter(text, f"--l2-adapter #{number}") for number, text in enumerate(texts, start=1))


def parse_adapter(text: str, where: str) -> L2AdapterSpec:
    try:
        given = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error
    return parse_adapter_object(given, where)


def parse_adapter_object(given: object, where: str) -> L2AdapterSpec:
    """The same for JSON that was read already, such as the `inner` adapter of another."""
    try:
        return _parse(given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _parse(given: object) -> L2AdapterSpec:
    if not isinstance(given, dict):
        raise ConfigError('must be a JSON object, such as {"type": "memory", "max_size_gb": 1}')
    type_name = given.get("type")
    if not isinstance(type_name, str):
        raise ConfigError(f"`type` is missing; known types: {', '.join(type_names())}")
    module = adapter_modules().get(type_name)
    if module is None:
        raise ConfigError(f"unknown type {type_name!r}; known types: {', '.join(type_names())}")
    own = {name: value for name, value in given.items() if name not in _COMMON_FIELDS}
    persist_enabled, shared = given.get("persist_enabled", True), given.get("shared", False)
    flag("persist_enabled", persist_enabled)
    flag("shared", shared)
    return L2AdapterSpec(
        type_name, make_settings(module.Config, own), _parse_eviction(given.get("eviction")), persist_enabled,
        parse_serde(given.get("serde")), shared,
    )  # fmt: skip


def make_settings(config_class: Any, given: Mapping[str, object]) -> Any:
    """The settings dataclass of a type from JSON fields. Raises ConfigError for what is missing or unknown."""
    known = [item.name for item in dataclasses.fields(config_class)]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"unknown field {name!r}{hint} (there are: {', '.join(known)})")
    missing = [
        item.name
        for item in dataclasses.fields(config_class)
        if item.name not in given
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing field {', '.join(map(repr, missing))}")
    return config_class(**given)


def _parse_eviction(given: object) -> EvictionConfig | None:
    if given is None:
        return None
    if not isinstance(given, dict) or "eviction_policy" not in given:
        raise ConfigError("`eviction` must be an object with an `eviction_policy`")
    config: EvictionConfig = make_settings(EvictionConfig, given)
    names = policy_names()
    if config.eviction_policy not in names:
        raise ConfigError(f"eviction_policy must be one of {', '.join(names)} (got {config.eviction_policy!r})")
    fraction("trigger_watermark", config.trigger_watermark)
    fraction("eviction_ratio", config.eviction_ratio)
    return config


def parse_serde(given: object) -> tuple[SerdeSpec, ...]:
    """One serde or a list of them, each an object with a `type`."""
    if given is None:
        return ()
    return tuple(_parse_serde_entry(entry) for entry in (given if isinstance(given, list) else [given]))


def _parse_serde_entry(entry: object) -> SerdeSpec:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise ConfigError('`serde` must be an object with a `type`, such as {"type": "zstd"}, or a list of them')
    type_name = entry["type"]
    own = {name: value for name, value in entry.items() if name != "type"}
    module = serde_module(type_name)
    try:
        return SerdeSpec(type_name, make_settings(module.Config, own))
    except ConfigError as error:
        raise ConfigError(f"serde {type_name}: {error}") from error


def make_adapter(spec: L2AdapterSpec, context: AdapterContext) -> L2Adapter:
    """The adapter of a spec inside its serdes, not opened yet. Raises ConfigError."""
    try:
        adapter: L2Adapter = adapter_modules()[spec.type].make(spec.settings, context)
        return wrap(adapter, spec.serde) if spec.serde else adapter
    except ConfigError as error:
        raise ConfigError(f"L2 adapter {spec.type}: {error}") from error
