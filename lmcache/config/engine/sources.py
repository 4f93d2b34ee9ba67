"""Where settings come from: a YAML file, the environment, and vLLM's kv_connector_extra_config.

Each source becomes values by canonical key, unconverted, with a line for every name that is not ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS, ALIASES, canonical, family_of, nearest
from lmcache.config.engine.foreign_keys import FAMILIES
from lmcache.config.engine.kinds import means_null
from lmcache.errors import ConfigError

FILE_VARIABLE = "LMCACHE_CONFIG_FILE"
ENV_PREFIX = "LMCACHE_"
CONNECTOR_PREFIX = "lmcache."
_MP_PREFIX = "lmcache.mp."
# So near to a key of ours that a variable is a slip of the pen; other parts have variables of their own.
_NEAR_VARIABLE = 0.75
# Far more than any configuration has. The path may come with a call, and name whatever there is on this host.
_FILE_BYTES_MAX = 256 << 10
_VALUES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Given:
    """One value as it was written. `where` names it in messages."""

    value: object
    where: str


@dataclass(frozen=True, slots=True)
class Source:
    values: Mapping[str, Given]
    warnings: tuple[str, ...] = ()


def read_file(path: str) -> Source:
    """A YAML file of keys and values. Raises ConfigError where it cannot be read."""
    try:
        found = yaml.safe_load(_read_bytes(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration file {path} is not valid YAML: {_complaint(error)}") from error
    if found is None:
        found = {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"the configuration file {path} must hold keys and values, such as `chunk_size: 256`")
    if _has_too_many_values(found):
        raise ConfigError(f"the configuration file {path} holds more than {_VALUES_MAX} values, aliases written out")
    return _sort({name: Given(value, f"{name} in {path}") for name, value in found.items()})


def _read_bytes(path: str) -> bytes:
    """Never waits, as pipes and devices would make it. Raises ConfigError."""
    try:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"the configuration file {path} cannot be read: it is not a regular file")
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path that no file can have
        raise ConfigError(f"the configuration file {path!r} cannot be read: {error}") from error
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError(f"the configuration file {path} is larger than {_FILE_BYTES_MAX} bytes")
    return content


def _has_too_many_values(found: object) -> bool:
    """Every value counts as often as it would be written out: a few aliases can stand for billions, or for
    themselves."""
    num_values, waiting = 0, [found]
    while waiting and num_values <= _VALUES_MAX:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        num_values += 1 + len(inner)
        waiting += inner
    return num_values > _VALUES_MAX


def read_environment(environ: Mapping[str, str]) -> Source:
    """Every `LMCACHE_<KEY>`. Other variables that begin so are those of other parts."""
    found, warnings = {}, []
    for variable, value in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or variable != variable.upper() or variable == FILE_VARIABLE:
            continue
        if is_known(name):
            found[name] = Given(value, variable)
        elif (near := nearest(name, _NEAR_VARIABLE)) is not None:
            warnings.append(f"unknown variable {variable} is ignored; did you mean {ENV_PREFIX}{near.upper()}?")
    sorted_source = _sort(found)
    return Source(sorted_source.values, (*warnings, *sorted_source.warnings))


def read_connector(extra: Mapping[str, object]) -> Source:
    """The keys `lmcache.<key>`; others belong to other parts."""
    given = {key: value for key, value in extra.items() if key.startswith(CONNECTOR_PREFIX)}
    own = {
        key.removeprefix(CONNECTOR_PREFIX): Given(value, f"{key} in kv_connector_extra_config")
        for key, value in given.items()
        if not key.startswith(_MP_PREFIX)
    }
    source = _sort(own)
    if len(own) == len(given):
        return source
    line = (
        f"{_MP_PREFIX}* in kv_connector_extra_config has no effect: it is for LMCacheMPConnector, which needs a server"
    )
    return Source(source.values, (line, *source.warnings))


def is_known(name: str) -> bool:
    return canonical(name) in _CONFIG_DEFINITIONS or family_of(canonical(name)) is not None


def _sort(given: Mapping[str, Given]) -> Source:
    """Names to canonical keys; those that are not ours, and whole families without effect, to warnings."""
    values: dict[str, Given] = {}
    warnings: list[str] = []
    families: dict[str, list[str]] = {}
    # A key's own name is taken before its alias.
    for name in sorted(given, key=lambda name: name in ALIASES):
        key = canonical(name)
        family = family_of(key)
        if family is not None:
            if not _is_off(given[name].value):
                families.setdefault(family, []).append(name)
        elif key not in _CONFIG_DEFINITIONS:
            warnings.append(_unknown(name, given[name]))
        elif key in values:
            warnings.append(f"{given[name].where} is ignored: {key} is given as well")
        else:
            values[key] = given[name]
    warnings += [f"{', '.join(names)} without effect: {FAMILIES[family]}" for family, names in families.items()]
    return Source(values, tuple(warnings))


def _unknown(name: str, given: Given) -> str:
    near = nearest(name)
    return f"unknown key {given.where} is ignored" + (f"; did you mean {near}?" if near else "")


def _is_off(value: object) -> bool:
    return not value or means_null(value) or (isinstance(value, str) and value.strip().lower() in ("false", "0"))


def _complaint(error: Exception) -> str:
    """Without the lines of the file that the library's own text quotes: they may hold passwords."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return type(error).__name__
