"""The server's end: one ROUTER socket on several addresses, one thread, a handler per frame.

The loop knows nothing of messages; it hands frames to a callable and sends what it returns.
Other threads may ask it to send through `post`, which wakes it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)

_HIGH_WATER = 10_000
_POSTS_MAX = 100_000
# How long a stop waits for peers to take what was sent to them.
_LAST_SENDS_MS = 500

FrameHandler = Callable[[bytes, bytes], bytes | None]


class ServerLoop:
    """`handle(peer, frame)` runs in the loop's thread and must not raise; it returns the reply,
    or None where it will be sent by `post`."""

    def __init__(
        self, urls: Sequence[str], handle: FrameHandler, tick: Callable[[], None], tick_s: float, frame_bytes_max: int
    ) -> None:
        """Binds at once. Raises ConfigError if an address cannot be had."""
        self._handle = handle
        self._tick = tick
        self._tick_ms = int(tick_s * 1000)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._router.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._router.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)
        self._wake_address = f"inproc://wake-{id(self)}"
        self._wake_in = self._context.socket(zmq.PULL)
        self._wake_in.bind(self._wake_address)
        self._wake_mutex = threading.Lock()
        self._wake_out = self._context.socket(zmq.PUSH)
        self._wake_out.connect(self._wake_address)
        self._posts: deque[tuple[bytes, bytes]] = deque(maxlen=_POSTS_MAX)
        self._is_stopping = False
        try:
            for url in urls:
                self._bind(url)
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="lmcache-zmq-loop", daemon=True)

    def _bind(self, url: str) -> None:
        try:
            self._router.bind(url)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot listen on {url}: {error}") from error

    def rebind(self, url: str) -> None:
        """Listen anew on an address whose file was removed. Only from the loop's thread (`tick`)."""
        with contextlib.suppress(zmq.ZMQError):
            self._router.unbind(url)
        self._bind(url)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def post(self, peer: bytes, frame: bytes) -> None:
        """Send a frame to a peer from any thread, which never waits; dropped if the peer is gone."""
        self._posts.append((peer, frame))
        self._wake()

    def stop(self) -> None:
        """Send what was posted, stop the loop and close the sockets. Idempotent; not from the loop's own thread."""
        if self._thread.is_alive():
            self._is_stopping = True
            self._wake()
            self._thread.join()
        with self._wake_mutex:
            self._context.destroy(linger=_LAST_SENDS_MS)

    def _wake(self) -> None:
        """A queue that is full of such words wakes the loop as well as one more."""
        with self._wake_mutex, contextlib.suppress(zmq.Again):
            if not self._wake_out.closed:
                self._wake_out.send(b"", zmq.DONTWAIT)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(self._tick_ms))
            if self._wake_in in ready:
                self._wake_in.recv()
            # Looked at once: what was posted before it was set is sent below.
            is_stopping = self._is_stopping
            if self._router in ready and not is_stopping:
                self._serve_waiting()
            while self._posts:
                self._send(*self._posts.popleft())
            if is_stopping:
                return
            self._tick()

    def _serve_waiting(self) -> None:
        """Answer what is queued, but look at the other duties after a while."""
        for _ in range(256):
            try:
                parts = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            reply = self._handle(parts[0], parts[1] if len(parts) == 2 else b"")
            if reply is not None:
                self._send(parts[0], reply)

    def _send(self, peer: bytes, frame: bytes) -> None:
        try:
            self._router.send_multipart((peer, frame), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            logger.debug("dropped an answer: %s", error)
