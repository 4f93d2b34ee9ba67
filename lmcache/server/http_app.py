"""The FastAPI application around the engine. It listens before the engine is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import anyio.to_thread
from fastapi import FastAPI

from lmcache.server.registry import HTTPAPIRegistry

TITLE = "LMCache HTTP API"
API_VERSION = "1.0.0"


class EngineLifecycle(Protocol):
    """What the application starts and stops around its own life."""

    def start(self, app: FastAPI) -> None:
        """Begin to open the engine without waiting for it; set `app.state.engine` when it is there."""

    def stop(self) -> None:
        """Close the engine, also one that is still being opened. Blocks."""


def make_app(configs: Mapping[str, object], endpoints: HTTPAPIRegistry, lifecycle: EngineLifecycle) -> FastAPI:
    """`app.state.engine` is None until the engine answers; `app.state.configs` is there from the start."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle.start(app)
        yield
        await anyio.to_thread.run_sync(lifecycle.stop)

    app = FastAPI(title=TITLE, version=API_VERSION, lifespan=lifespan)
    app.state.engine = None
    app.state.request_server = None
    app.state.configs = dict(configs)
    endpoints.install(app)
    return app
