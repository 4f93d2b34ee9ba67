"""A client's connection to the server: one request at a time, or several in flight, with deadlines.

A connection belongs to one thread. Losing the server costs an error in time, never a hang:
the socket reconnects by itself, late answers are recognised by their number and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from lmcache.errors import (
    DeadlineExceededError,
    ProtocolError,
    RequestRefusedError,
    ServerUnavailableError,
    StaleBootError,
)
from lmcache.protocol.frames import decode_header, decode_reply, encode_frame
from lmcache.protocol.messages import ErrorCode, Failure, Reply, Request

_HIGH_WATER = 1000
_RECONNECT_MS = 100
_RECONNECT_MS_MAX = 2000


class Connection:
    """Not thread-safe. `boot_id` is that of the server the last answer came from."""

    def __init__(
        self,
        url: str,
        client_uid: int,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.client_uid = client_uid
        self._clock = clock
        self._number = 0
        self._waiting: dict[int, Reply | None] = {}
        self.unsolicited: list[Reply] = []
        self.boot_id = 0
        self._socket = (context or zmq.Context.instance()).socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)
        # Never queue for a server that is not there: what was meant for one that died must
        # not reach its successor.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.connect(url)

    def call(self, message: Request, boot_id: int, timeout_s: float) -> Reply:
        """Send and wait. Raises DeadlineExceededError, StaleBootError, RequestRefusedError."""
        deadline = self._clock() + timeout_s
        number = self.send(message, boot_id, timeout_s)
        return self.wait_or_raise(number, max(0.0, deadline - self._clock()), type(message).__name__)

    def wait_or_raise(self, number: int, timeout_s: float, what: str) -> Reply:
        """The answer to a request. Raises DeadlineExceededError if it does not come; then nobody waits for it."""
        reply = self.wait(number, timeout_s)
        if reply is None:
            self.forget(number)
            raise DeadlineExceededError(f"{self.url} did not answer {what} in {timeout_s:.3g} s")
        return reply

    def raise_if_gone(self, number: int, what: str) -> None:
        """Raise ServerUnavailableError if the answer to a request cannot come any more. Not for a connection on which
        much is posted: one that is full looks the same."""
        if not self.is_connected and self._waiting.get(number) is None and not self._socket.poll(0):
            self.forget(number)
            raise ServerUnavailableError(f"{self.url} went away before it answered {what}")

    def send(self, message: Request, boot_id: int, timeout_s: float = 0.0) -> int:
        """Send and return the request's number. Waits at most `timeout_s` for a connection."""
        self._number += 1
        frame = encode_frame(self._number, boot_id, self.client_uid, message)
        self._send_frame(frame, message, timeout_s)
        self._waiting[self._number] = None
        return self._number

    def post(self, message: Request, boot_id: int) -> bool:
        """Send without wanting the answer. False if there is no connection or its queue is full."""
        self._number += 1
        self._receive(0)
        try:
            self._socket.send(encode_frame(self._number, boot_id, self.client_uid, message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _send_frame(self, frame: bytes, message: Request, timeout_s: float) -> None:
        deadline = self._clock() + timeout_s
        while True:
            try:
                self._socket.send(frame, zmq.DONTWAIT)
                return
            except zmq.Again:
                # A connection may come and go between the poll and the next attempt.
                left_s = deadline - self._clock()
                if left_s <= 0 or not self._socket.poll(int(left_s * 1000), zmq.POLLOUT):
                    raise DeadlineExceededError(f"no server at {self.url} for {type(message).__name__}") from None

    def wait(self, number: int, timeout_s: float) -> Reply | None:
        """The answer to a request, or None if it is not there after `timeout_s`. Answers once."""
        deadline = self._clock() + timeout_s
        while True:
            reply = self._waiting.get(number)
            if reply is not None:
                del self._waiting[number]
                return _checked(reply)
            if self._take_one():  # often it is there already, and then a poll would cost more than the answer
                continue
            left_s = deadline - self._clock()
            if left_s <= 0:
                return None
            self._socket.poll(int(left_s * 1000 + 0.999))

    @property
    def is_connected(self) -> bool:
        """False: nobody listens at the other end any more, or too much waits there to be taken in."""
        return bool(self._socket.poll(0, zmq.POLLOUT))

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(number, None)

    def receive(self, timeout_s: float) -> None:
        """Take in what arrives within `timeout_s`; unsolicited messages gather in `unsolicited`."""
        self._receive(int(timeout_s * 1000))

    def _receive(self, timeout_ms: int) -> bool:
        """Take in every answer that is there, waiting for the first. False if none came."""
        if not self._socket.poll(timeout_ms):
            return False
        while self._take_one():
            pass
        return True

    def _take_one(self) -> bool:
        """Take in the next answer. False if there is none."""
        try:
            frame = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return False
        try:
            header = decode_header(frame)
            reply = decode_reply(frame)
        except ProtocolError as error:
            # Not for us to judge whose it was: all who wait learn why.
            failure = Failure(ErrorCode.BAD_FRAME, str(error))
            self._waiting.update(dict.fromkeys(self._waiting, failure))
            return True
        self.boot_id = header.boot_id
        if header.number == 0:
            self.unsolicited.append(reply)
        elif header.number in self._waiting:
            self._waiting[header.number] = reply
        return True

    def close(self) -> None:
        self._socket.close(linger=0)


def _checked(reply: Reply) -> Reply:
    if isinstance(reply, Failure):
        if reply.code == ErrorCode.STALE_BOOT:
            raise StaleBootError(reply.text)
        raise RequestRefusedError(reply.code, reply.text)
    return reply
