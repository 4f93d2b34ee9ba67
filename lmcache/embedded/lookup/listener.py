"""A socket file that a thread listens at: frames in, frames out. Knows no message."""

from __future__ import annotations

import logging
import os
import pathlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)

_THREAD_NAME = "lmcache-lookup-server"
# How long the end waits for peers to take what was said to them.
_LAST_SENDS_MS = 200

# The reply, or None where it comes later by `post`, or never. Must not raise.
Handle = Callable[[list[bytes]], Sequence[bytes] | None]


class Listener:
    """`handle` is called in the thread, with one message after the other. `start` once, then `close`."""

    def __init__(self, path: pathlib.Path, socket_type: int, handle: Handle) -> None:
        self.path = path
        self._socket_type = socket_type
        self._handle = handle
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._thread: threading.Thread | None = None
        self._posts: deque[Sequence[bytes]] = deque()
        # Guards the descriptor that wakes the thread, which others may have after the end.
        self._mutex = threading.Lock()
        self._wake_fd = -1
        self._is_stopping = False

    def start(self) -> None:
        """Raises ConfigError."""
        context = zmq.Context[zmq.Socket[bytes]]()
        socket = context.socket(self._socket_type)
        socket.setsockopt(zmq.SNDTIMEO, 0)
        try:
            socket.bind(f"ipc://{self.path}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            context.term()
            raise ConfigError(f"cannot listen for lookups at {self.path}: {error}") from error
        self._context, self._wake_fd = context, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, args=(socket,), name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def post(self, frames: Sequence[bytes]) -> None:
        """Send from any thread. Dropped after the end."""
        with self._mutex:
            if self._wake_fd >= 0:
                self._posts.append(frames)
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Answers what it is at, then ends; the socket file goes. Idempotent; not from its own thread."""
        thread, self._thread = self._thread, None
        if thread is None or self._context is None:
            return
        self._is_stopping = True
        os.eventfd_write(self._wake_fd, 1)
        thread.join()
        with self._mutex:
            os.close(self._wake_fd)
            self._wake_fd = -1
        self.path.unlink(missing_ok=True)
        self._context.term()

    def _run(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        while not self._is_stopping:
            ready = dict(poller.poll())
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            while self._posts:
                _send(socket, self._posts.popleft())
            if socket in ready and not self._is_stopping:
                reply = self._handle(socket.recv_multipart())
                if reply is not None:
                    _send(socket, reply)
        socket.close(linger=_LAST_SENDS_MS)


def _send(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    try:
        socket.send_multipart(frames)
    except zmq.ZMQError as error:  # the peer is gone, or takes nothing in
        logger.debug("dropped an answer: %s", error)
