"""The FastAPI application around the engine. It listens before the engine is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import anyio.to_thread
from fastapi import FastAPI

from lmcache.http.errors import install_errors
from lmcache.http.guard import GuardConfig, install_guard
from lmcache.http.registry import HTTPAPIRegistry

TITLE = "LMCache HTTP API"
API_VERSION = "1.0.0"


class EngineLifecycle(Protocol):
    """What the application starts and stops around its own life."""

    def start(self, app: FastAPI) -> None:
        """Begin to open the engine without waiting for it; set `app.state.engine` when it is there."""

    def stop(self) -> None:
        """Close the engine, also one that is still being opened. Blocks."""


def make_app(
    configs: Mapping[str, object],
    endpoints: HTTPAPIRegistry,
    lifecycle: EngineLifecycle,
    guard: GuardConfig = GuardConfig(),
    members: Mapping[str, object] | None = None,
) -> FastAPI:
    """`app.state.engine` is None until the engine answers; `app.state.configs` is there from the start.

    `members`: what the endpoints expect on `app.state` besides (those that every process of ours
    serves list theirs in `v1.internal_api_server.state`).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start(app)
        yield
        await anyio.to_thread.run_sync(lifecycle.stop)

    app = FastAPI(title=TITLE, version=API_VERSION, lifespan=lifespan)
    app.state.engine = None
    app.state.request_server = None
    app.state.configs = dict(configs)
    for name, value in (members or {}).items():
        setattr(app.state, name, value)
    endpoints.install(app)
    install_errors(app)
    install_guard(app, guard)
    return app
