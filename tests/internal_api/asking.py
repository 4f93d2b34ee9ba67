"""An internal API in the test's own process: its application over a manager whose parts a test can take away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from lmcache.config.engine.views import internal_api_settings
from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.testing.embedded_fake import FakeEngine, FakeManager, make_manager
from lmcache.v1.internal_api_server.app import make_internal_app

LOOPBACK = ("127.0.0.1", 5000)
ELSEWHERE = ("192.0.2.7", 5000)


class Asked:
    """Calls come from this machine unless `client` says otherwise."""

    def __init__(self, role: str, values: Mapping[str, object] | None = None, worker_id: int = 0) -> None:
        self.manager: FakeManager = make_manager(role, values, worker_id)
        self.made = make_internal_app(internal_api_settings(self.manager.config), self.manager)
        self.app = self.made.app

    @property
    def engine(self) -> FakeEngine:
        assert self.manager.fake_engine is not None
        return self.manager.fake_engine

    def call(self, method: str, target: str, client: tuple[str, int] = LOOPBACK, **settings: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=client)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7000", timeout=30) as http:
                return await http.request(method, target, **settings)

        return asyncio.run(run())

    def json(self, method: str, target: str, code: int = 200, **settings: Any) -> Any:
        answer = self.call(method, target, **settings)
        assert answer.status_code == code, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.json()


def worker(**values: object) -> Asked:
    return Asked(WORKER, values)


def scheduler(**values: object) -> Asked:
    return Asked(SCHEDULER, values)
