"""A door with TLS in front of a server that has none."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading


class TLSFront:
    """Passes bytes on, both ways, for as many connections as come. A context manager."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._target = port
        self._context = context
        self._listener = socket.create_server(("localhost", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> TLSFront:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread in `accept` does not notice that its socket was closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[:1]:
            thread.join()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for end in [*self._sockets, self._listener]:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                near = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            self._threads.append(threading.Thread(target=self._pass_on, args=(near, far)))
            self._threads[-1].start()

    def _pass_on(self, near: ssl.SSLSocket, far: socket.socket) -> None:
        """Both ways in one thread: two may not work on one TLS connection at once."""
        with contextlib.suppress(OSError):
            while ready := [near] if near.pending() else select.select([near, far], [], [])[0]:
                for source in ready:
                    content = source.recv(65536)
                    if not content:
                        return
                    (far if source is near else near).sendall(content)
