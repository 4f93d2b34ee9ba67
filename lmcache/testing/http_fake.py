"""A small real HTTP server around a function that answers: kept connections, optional TLS, nothing of ours.

Knows no endpoint.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """`parts`: the decoded parts of the path. `body`: decoded JSON, or None where there is none."""

    method: str
    parts: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A `str` body is sent as plain text, any other as JSON. `closes`: drop the connection afterwards, unannounced."""

    status: int
    body: object
    closes: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class HTTPFake:
    """A context manager. `answer` is called in the threads of the connections."""

    def __init__(self, answer: Callable[[Call], Reply], tls: ssl.SSLContext | None = None) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(answer))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="http-fake", daemon=True)

    def __enter__(self) -> HTTPFake:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_for(answer: Callable[[Call], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _READ_TIMEOUT_S

        def handle_one_request(self) -> None:
            """One of any method; the base class reads the request line."""
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self._send(answer(self._call()))

        def _call(self) -> Call:
            target = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
            parts = tuple(unquote(part) for part in target.path.split("/") if part)
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            return Call(self.command, parts, query, dict(self.headers.items()), body)

        def _send(self, reply: Reply) -> None:
            is_text = isinstance(reply.body, str)
            payload = str(reply.body).encode() if is_text else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "text/plain; charset=utf-8" if is_text else "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)
            self.wfile.flush()
            self.close_connection = self.close_connection or reply.closes

        def log_message(self, format: str, *args: object) -> None:
            """Tests read the calls, not a log."""

    return Handler
