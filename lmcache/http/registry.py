"""Discovery of HTTP endpoints: every module `*_api` of a package that has a `router`, and those added to them.

The package is handed in by whoever composes the process, so that this floor never imports
the front doors above it.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route

from lmcache.errors import ConfigError, EndpointError
from lmcache.http.endpoint_modules import SUFFIX, entry_point_objects, folder_modules, package_modules
from lmcache.http.path_parameters import as_written

logger = logging.getLogger(__name__)

# Two paths that differ by nothing but the names of their parameters are the same path.
_PARAMETER = re.compile(r"{[^}:]*(:[^}]*)?}")
_OWN_PATHS = ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")


class HTTPAPIRegistry:
    """The endpoints of a package, in the order of their modules' names, then those that were added."""

    def __init__(self, package: str, excluded: Collection[str] = ()) -> None:
        """Imports the modules but for those in `excluded`; raises EndpointError if one cannot be served."""
        self.routers: dict[str, APIRouter] = {}
        self._owner_of = {("GET", path): "the framework" for path in _OWN_PATHS}
        self._disabled: frozenset[str] = frozenset()
        self.add_package(package, excluded)

    def add_package(self, package: str, excluded: Collection[str] = ()) -> None:
        """As at the start, of another package. Raises EndpointError."""
        self._add_all(package_modules(package, excluded))

    def add_folder(self, folder: str, setting: str) -> None:
        """Every `*_api.py` there. Raises ConfigError, naming the setting, and EndpointError."""
        self._add_all(folder_modules(folder, setting))

    def add_entry_points(self) -> None:
        """What installed distributions offer. Raises EndpointError."""
        self._add_all(entry_point_objects())

    def disable(self, names: Iterable[str], setting: str) -> None:
        """Serve nothing of these modules (named without `_api`) and paths. Raises ConfigError for an unknown one."""
        asked = frozenset(names)
        modules = sorted({_module_of(route) for _, route in self._routes()})
        paths = sorted({path for path, _ in self._routes()})
        for name in sorted(asked - {*modules, *paths}):
            raise ConfigError(
                f"{setting} knows no {name!r}: name modules ({', '.join(modules)}) or paths ({', '.join(paths)})"
            )
        self._disabled |= asked

    def paths(self) -> set[tuple[str, str]]:
        """Every (method, path) served."""
        served = ((path, route) for path, route in self._routes() if not self._is_disabled(path, route))
        return {(method, path) for path, route in served for method in route.methods or ()}

    def aggregate(self) -> APIRouter:
        """One router with all endpoints inside."""
        parent = APIRouter()
        for router in self.routers.values():
            parent.include_router(_without(router, self._is_disabled) if self._disabled else router)
        return parent

    def install(self, app: FastAPI) -> None:
        app.include_router(self.aggregate())

    def _add_all(self, found: Mapping[str, object]) -> None:
        for name, module in found.items():
            router = module if isinstance(module, APIRouter) else getattr(module, "router", None)
            if isinstance(router, APIRouter):
                self._claim(name, router)
                self.routers[name] = router
            else:
                logger.warning("%s has no `router`; it adds no endpoint", name)

    def _claim(self, name: str, router: APIRouter) -> None:
        for path, route in walk(router):
            for method in sorted(route.methods or ()):
                owner = self._owner_of.setdefault((method, _PARAMETER.sub(r"{\1}", path)), name)
                if owner != name:
                    raise EndpointError(f"{method} {path} is defined by {owner} and by {name}")

    def _routes(self) -> Iterator[tuple[str, Route]]:
        for router in self.routers.values():
            yield from walk(router)

    def _is_disabled(self, path: str, route: Route) -> bool:
        return path in self._disabled or _module_of(route) in self._disabled


def walk(router: APIRouter, prefix: str = "") -> Iterator[tuple[str, Route]]:
    """The routes of a router and of those inside it, with their full paths. From FastAPI 0.137 an
    included router is kept whole behind a wrapper instead of being copied route by route."""
    routes: list[BaseRoute] = router.routes
    for route in routes:
        inner = _inside(route)
        if inner is not None:
            yield from walk(inner, prefix + _prefix_of(route))
        elif isinstance(route, Route):
            yield prefix + as_written(route.path), route


def _without(router: APIRouter, is_left_out: Callable[[str, Route], bool], prefix: str = "") -> APIRouter:
    """A copy of the router that lacks some routes; the module that has the original is not touched."""
    kept: list[BaseRoute] = []
    routes: list[BaseRoute] = router.routes
    for route in routes:
        inner = _inside(route)
        if inner is not None:
            wrapper: Any = copy.copy(route)
            wrapper.original_router = _without(inner, is_left_out, prefix + _prefix_of(route))
            kept.append(wrapper)
        elif not isinstance(route, Route) or not is_left_out(prefix + as_written(route.path), route):
            kept.append(route)
    twin = copy.copy(router)
    twin.routes = kept
    return twin


def _inside(route: BaseRoute) -> APIRouter | None:
    inner = getattr(route, "original_router", None)
    return inner if isinstance(inner, APIRouter) else None


def _prefix_of(wrapper: BaseRoute) -> str:
    return str(getattr(getattr(wrapper, "include_context", None), "prefix", ""))


def _module_of(route: Route) -> str:
    """The short name of the module with the handler, also behind an aggregate or a shim."""
    return route.endpoint.__module__.rpartition(".")[2].removesuffix(SUFFIX)
