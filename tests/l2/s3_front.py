"""A door in front of an S3 server: it notes every request, and answers some itself as a service under load would."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_TIMEOUT_S = 60
_OWN_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True, slots=True)
class Asked:
    """`action`: the method, and what the query names (`PUT partNumber uploadId`). `came_s`, `refused_s`: when it was
    read, and when it was refused; 0 where it was not."""

    action: str
    came_s: float
    refused_s: float = 0.0


class S3Front:
    """A context manager. The next `num_refusals` requests are answered with 503, the others by the server on `port`."""

    def __init__(self, port: int) -> None:
        self.asked: list[Asked] = []
        self.num_refusals = 0
        self._mutex = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self._refuses, port))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> S3Front:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()  # joins the threads of its connections

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self) -> list[Asked]:
        """What was asked since the last call."""
        with self._mutex:
            taken, self.asked = self.asked, []
        return taken

    def take_actions(self) -> list[str]:
        return [asked.action for asked in self.take()]

    def _refuses(self, action: str) -> bool:
        came_s = time.monotonic()
        with self._mutex:
            is_refused = self.num_refusals > 0
            self.num_refusals -= is_refused
            self.asked.append(Asked(action, came_s, time.monotonic() if is_refused else 0.0))
        return is_refused


class _Server(ThreadingHTTPServer):
    """Keeps connections for as long as a client likes, and ends them all when told."""

    daemon_threads = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._mutex = threading.Lock()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        with self._mutex:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._mutex:
            self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        with self._mutex:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _handler(refuses: Callable[[str], bool], port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            query = urlsplit(self.path).query
            names = [field.partition("=")[0] for field in query.split("&") if field]
            if refuses(" ".join([self.command, *sorted(names)])):
                self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                return
            behind = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
            try:
                behind.request(self.command, self.path, content, dict(self.headers.items()))
                answer = behind.getresponse()
                self._answer(answer.status, answer.getheaders(), answer.read())
            finally:
                behind.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    return Handler
