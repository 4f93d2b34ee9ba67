"""The synchronous lookup client: asks all ranks at once, answers their minimum, within a deadline.

A rank that does not answer costs one deadline, once. From then on lookups miss at once, and the rank
is asked for a sign of life that nobody waits for, until it gives one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec
import zmq

from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import Urls
from lmcache.errors import DeclinedError

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], m.Answer] = msgspec.msgpack.Decoder(m.Answer).decode
_decode_layout = msgspec.json.Decoder(KVLayout).decode
_PROBE_INTERVAL_S = 1.0
_RECONNECT_MS = (10, 1000)
# Of the deadline, for a rank's tiers; the rest is for the way.
_WAIT_SHARE = 0.8


class LMCacheLookupClient:
    """A `LookupClient`. `timeout_ms` is asked before each lookup, since it may change."""

    def __init__(self, urls: Urls, timeout_ms: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [self._connect(url) for url in urls]
        self._silent: set[int] = set()
        self._probed_s = 0.0

    def _connect(self, url: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        # A question whose answer did not come is given up; should it come later, it is dropped.
        socket.setsockopt(zmq.REQ_RELAXED, 1)
        socket.setsockopt(zmq.REQ_CORRELATE, 1)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        socket.connect(url)
        return socket

    @property
    def is_up(self) -> bool:
        """Whether every rank answered when it was asked last."""
        return not self._silent

    def layouts(self) -> list[KVLayout] | None:
        answers = self._ask_all(m.Hello(), self._timeout_ms() / 1000)
        if answers is None:
            return None
        layouts = []
        for rank, answer in enumerate(answers):
            if isinstance(answer, m.Declined):
                raise DeclinedError(f"rank {rank}: {answer.text}")
            if isinstance(answer, m.Introduction):
                layouts.append(_decode_layout(answer.layout))
        return layouts if len(layouts) == len(self._sockets) else None

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
        timeout_s = self._timeout_ms() / 1000
        wait_s = timeout_s * _WAIT_SHARE if may_wait else 0.0
        question = m.Lookup(
            lookup_id, prompt.root, prompt.cache_salt, b"".join(prompt.digests), wait_s, prompt.tail_blocks
        )
        answers = self._ask_all(question, timeout_s)
        return min(map(_num_chunks, answers)) if answers else 0

    def _ask_all(self, question: m.Question, timeout_s: float) -> list[m.Answer] | None:
        """An answer per rank; None if some rank is silent."""
        if self._silent and not self._has_come_back():
            return None
        deadline_s = self._clock() + timeout_s
        encoded = _encode(question)
        sent = [_send(socket, encoded) for socket in self._sockets]
        answers: list[m.Answer] = []
        for rank, socket in enumerate(self._sockets):
            left_s = deadline_s - self._clock()
            answer = _receive(socket, max(0.0, left_s)) if sent[rank] else None
            if answer is None:
                self._silent.add(rank)
            else:
                answers.append(answer)
        if self._silent:
            logger.warning(
                "ranks %s did not answer a lookup within %g s: lookups miss until they do",
                sorted(self._silent), timeout_s,
            )  # fmt: skip
            self._probe()
            return None
        return answers

    def _has_come_back(self) -> bool:
        """Whether every silent rank has given a sign of life meanwhile. Waits for nobody."""
        for rank in sorted(self._silent):
            if _receive(self._sockets[rank], 0.0) is not None:
                self._silent.discard(rank)
        if not self._silent:
            logger.info("all ranks answer lookups again")
            return True
        if self._clock() - self._probed_s >= _PROBE_INTERVAL_S:
            self._probe()
        return False

    def _probe(self) -> None:
        self._probed_s = self._clock()
        encoded = _encode(m.Hello())
        for rank in self._silent:
            _send(self._sockets[rank], encoded)

    def forget(self, lookup_id: str) -> None:
        """Every lookup is over when it returns."""

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._context.term()


def _send(socket: zmq.Socket[bytes], encoded: bytes) -> bool:
    try:
        socket.send(encoded)
    except zmq.Again:
        return False
    return True


def _receive(socket: zmq.Socket[bytes], timeout_s: float) -> m.Answer | None:
    if not socket.poll(int(timeout_s * 1000)):
        return None
    try:
        return _decode(socket.recv(zmq.NOBLOCK))
    except msgspec.MsgspecError as error:
        return m.Failed(f"its answer cannot be read: {error}")


def _num_chunks(answer: m.Answer) -> int:
    if isinstance(answer, m.Found):
        return answer.num_chunks
    if isinstance(answer, m.Failed):
        logger.warning("a lookup failed: %s", answer.text)
    return 0
