"""The shared endpoints in an application of the test's own process, for states that a real server cannot be put in."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import httpx
from fastapi import FastAPI

from lmcache.config.scripts import ScriptSettings
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry

_COMMON = "lmcache.v1.internal_api_server.common"


def common_app(name: str, **members: Any) -> FastAPI:
    """One module of the shared endpoints, and what it finds on `app.state`."""
    app = FastAPI()
    defaults = {
        "metrics": MetricRegistry(),
        "periodic_threads": PeriodicThreadRegistry(),
        "redact_env": False,
        "script_settings": ScriptSettings(),
    }
    for member, value in {**defaults, **members}.items():
        setattr(app.state, member, value)
    app.include_router(common_module(name).router)
    return app


def common_module(name: str) -> ModuleType:
    return importlib.import_module(f"{_COMMON}.{name}")


def talk(app: FastAPI, conversation: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Several requests on one event loop."""

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            await conversation(client)

    asyncio.run(run())


def ask(app: FastAPI, method: str, path: str, **settings: Any) -> httpx.Response:
    answers: list[httpx.Response] = []

    async def conversation(client: httpx.AsyncClient) -> None:
        answers.append(await client.request(method, path, **settings))

    talk(app, conversation)
    return answers[0]
