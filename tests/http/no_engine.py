"""The real application before its engine is there, or around whatever a test puts in its place; no socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

from lmcache.http.registry import HTTPAPIRegistry
from lmcache.server.http_app import make_app


class NoLifecycle:
    def start(self, app: FastAPI) -> None:
        """The engine never comes."""

    def stop(self) -> None:
        """There is none."""


def ask(method: str, url: str, engine: object = None, **options: Any) -> httpx.Response:
    """One request by a client on loopback."""
    app = make_app({}, HTTPAPIRegistry("lmcache.v1.multiprocess.http_apis"), NoLifecycle())
    app.state.engine = engine

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, url, **options)

    return asyncio.run(send())
