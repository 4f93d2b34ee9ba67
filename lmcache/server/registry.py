"""Discovery of HTTP endpoints: every module `*_api` of a package that has a `router`.

The package is handed in by whoever composes the process, so that this floor never imports
the front doors above it.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Collection, Iterator
from types import ModuleType

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route

from lmcache.errors import EndpointError

logger = logging.getLogger(__name__)

_SUFFIX = "_api"


class HTTPAPIRegistry:
    """The endpoints of one package, in the order of their modules' names."""

    def __init__(self, package: str, excluded: Collection[str] = ()) -> None:
        """Imports the modules but for those in `excluded`; raises EndpointError if one cannot be served."""
        self.routers: dict[str, APIRouter] = {}
        self._owner_of: dict[tuple[str, str], str] = {}
        for name in _module_names(package, excluded):
            router = getattr(_import(name), "router", None)
            if isinstance(router, APIRouter):
                self._claim(name, router)
                self.routers[name] = router
            else:
                logger.warning("%s has no `router`; it adds no endpoint", name)

    def _claim(self, name: str, router: APIRouter) -> None:
        for route in walk(router):
            for method in sorted(route.methods or ()):
                owner = self._owner_of.setdefault((method, route.path), name)
                if owner != name:
                    raise EndpointError(f"{method} {route.path} is defined by {owner} and by {name}")

    def paths(self) -> set[tuple[str, str]]:
        """Every (method, path) served."""
        return set(self._owner_of)

    def aggregate(self) -> APIRouter:
        """One router with all endpoints inside."""
        parent = APIRouter()
        for router in self.routers.values():
            parent.include_router(router)
        return parent

    def install(self, app: FastAPI) -> None:
        app.include_router(self.aggregate())


def walk(router: APIRouter) -> Iterator[Route]:
    """The routes of a router and of those inside it. From FastAPI 0.137 an included router is
    kept whole behind a wrapper instead of being copied route by route."""
    routes: list[BaseRoute] = router.routes
    for route in routes:
        inner = getattr(route, "original_router", None)
        if isinstance(inner, APIRouter):
            yield from walk(inner)
        elif isinstance(route, Route):
            yield route


def _module_names(package: str, excluded: Collection[str]) -> list[str]:
    found = pkgutil.iter_modules(_import(package).__path__)
    names = sorted(info.name for info in found if info.name.endswith(_SUFFIX))
    return [f"{package}.{name}" for name in names if name not in excluded]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module does when it is imported: its name must be told
        raise EndpointError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
