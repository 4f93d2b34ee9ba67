"""Internal APIs that listen: servers over managers of fakes, on ports of nobody else."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpx

from lmcache.config.engine.views import internal_api_settings
from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.testing.embedded_fake import FakeManager, make_manager
from lmcache.testing.ports import free_port
from lmcache.v1.internal_api_server.api_server import InternalAPIServer

WORKER_INDEX = 1


@dataclass(frozen=True, slots=True)
class Running:
    manager: FakeManager
    server: InternalAPIServer
    http: httpx.Client


class Serving:
    """Starts servers, and stops all of them at the end."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._clients: list[httpx.Client] = []

    def start(self, role: str = WORKER, tls: ssl.SSLContext | bool = True, **values: object) -> Running:
        """On loopback, unless `values` say otherwise."""
        index = 0 if role == SCHEDULER else WORKER_INDEX
        values = {"internal_api_server_port_start": free_port(2) - index, **values}
        manager = make_manager(role, {"internal_api_server_enabled": True, **values})
        settings = internal_api_settings(manager.config)
        server = InternalAPIServer(settings, index, manager)
        server.start()
        path = settings.socket_path(index)
        scheme = "http" if settings.ssl_certfile is None else "https"
        client = self.client(f"{scheme}://localhost:{settings.port(index)}", path, tls)
        self._running.append(Running(manager, server, client))
        return self._running[-1]

    def client(self, url: str, path: str | None = None, tls: ssl.SSLContext | bool = True) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=path, verify=tls)
        self._clients.append(httpx.Client(base_url=url, transport=transport, timeout=30))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for running in self._running:
            running.server.stop()
