"""Calls of an application inside this process, from any address that a test wants to come from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
from fastapi import FastAPI

LOOPBACK = ("127.0.0.1", 5000)
ELSEWHERE = ("192.0.2.7", 5000)


def ask(
    app: FastAPI,
    method: str,
    path: str,
    *,
    client: tuple[str, int] = LOOPBACK,
    host: str = "localhost:8080",
    headers: Mapping[str, str] | None = None,
    content: bytes | AsyncIterator[bytes] = b"",
) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as http:
            sent = {"host": host, **(headers or {})}
            as_bytes = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
            return await http.request(method, path, headers=as_bytes, content=content)

    return asyncio.run(call())
