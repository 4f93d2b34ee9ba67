"""The configuration of this process from its sources, read once at the start.

A later source wins: file, environment, kv_connector_extra_config. What cannot be read as a value is
named and replaced by the default (by null, where the key may be null); what can be read but not
honoured stops the start.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.definition import OutOfRangeError, UnparsableError
from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS
from lmcache.config.engine.sources import FILE_VARIABLE, Given, read_connector, read_environment, read_file
from lmcache.config.engine.validation import check_combinations, warnings_about
from lmcache.errors import ConfigError

_NOTHING: Mapping[str, object] = {}


def load_engine_config(
    environ: Mapping[str, str],
    connector_extra: Mapping[str, object] = _NOTHING,
    config_file: str | None = None,
    make_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> tuple[LMCacheEngineConfig, list[str]]:
    """The configuration, and one line for each setting that will not do what its writer hopes.

    `config_file` None: the one that the environment names, if it does. Raises ConfigError.
    """
    path = config_file or environ.get(FILE_VARIABLE)
    sources = [read_file(path)] if path else []
    sources += [read_environment(environ), read_connector(connector_extra)]
    given: dict[str, Given] = {}
    warnings: list[str] = []
    for source in sources:
        given |= source.values
        warnings += source.warnings
    values = {name: _convert(name, entry, warnings) for name, entry in given.items()}
    if not values.get("lmcache_instance_id"):
        values["lmcache_instance_id"] = f"lmcacheengineconfig_{make_id()}"
    config = LMCacheEngineConfig(values)
    check_combinations(config)
    return config, warnings + warnings_about(config, given.keys())


def _convert(name: str, given: Given, warnings: list[str]) -> object:
    definition = _CONFIG_DEFINITIONS[name]
    try:
        value = definition.convert(name, given.value)
    except UnparsableError as error:
        kept = None if definition.is_nullable else definition.default
        warnings.append(f"{given.where} is ignored: {error}; {name} is {_word(kept)}")
        return kept
    except OutOfRangeError as error:
        raise ConfigError(f"{given.where}: {error}") from error
    if definition.no_effect and definition.asks(value):
        warnings.append(f"{given.where} has no effect: {definition.no_effect}")
    return value


def _word(value: object) -> str:
    return "null" if value is None else str(value)
