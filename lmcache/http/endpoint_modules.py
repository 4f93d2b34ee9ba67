"""Where endpoint modules are found: in a package, in a folder outside of it, behind entry points."""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from lmcache.errors import ConfigError, EndpointError

SUFFIX = "_api"
ENTRY_POINT_GROUP = "lmcache.http_apis"
# Modules of a folder are imported as if it were a package, so that they can import their neighbours.
_FOLDER_PACKAGE = "lmcache_http_extra_apis"


def package_modules(package: str, excluded: Collection[str] = ()) -> dict[str, ModuleType]:
    """By full name, in the order of names. Raises EndpointError with the name that cannot be imported."""
    found = pkgutil.iter_modules(_import(package).__path__)
    names = sorted(info.name for info in found if info.name.endswith(SUFFIX))
    return {f"{package}.{name}": _import(f"{package}.{name}") for name in names if name not in excluded}


def folder_modules(folder: str, setting: str) -> dict[str, ModuleType]:
    """By path of the file. Raises ConfigError where there is no such folder, or nothing in it to serve."""
    path = pathlib.Path(folder).absolute()
    if not path.is_dir():
        raise ConfigError(f"{setting} {folder} is not a folder")
    package = _as_package(path)
    found = sorted(info.name for info in pkgutil.iter_modules([str(path)]) if info.name.endswith(SUFFIX))
    if not found:
        raise ConfigError(f"{setting} {folder} holds no module named *{SUFFIX}.py")
    return {str(path / f"{name}.py"): _import(f"{package}.{name}", str(path / f"{name}.py")) for name in found}


def entry_point_objects() -> dict[str, object]:
    """What the entry points of installed distributions name: modules, or routers. Raises EndpointError."""
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    return {f"entry point {entry.name} = {entry.value}": _load(entry) for entry in found}


def _as_package(path: pathlib.Path) -> str:
    number = sum(name.partition(".")[0].startswith(_FOLDER_PACKAGE) and "." not in name for name in sys.modules)
    package = ModuleType(f"{_FOLDER_PACKAGE}_{number}")
    package.__path__ = [str(path)]
    sys.modules[package.__name__] = package
    return package.__name__


def _import(name: str, shown_as: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except EndpointError:
        raise  # of a module that aggregates others, and names the one at fault
    except Exception as error:  # whatever a module does when it is imported: its name must be told
        raise _failed(shown_as or name, error) from error


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:  # as above
        raise _failed(f"entry point {entry.name} = {entry.value}", error) from error


def _failed(what: str, error: Exception) -> EndpointError:
    return EndpointError(f"{what} cannot be imported: {type(error).__name__}: {error}")
