"""The ways from a client to its ranks: a socket for each; answers find their question by a number.

A rank is silent from the moment that it missed a deadline or its connection ended, until it says anything
again. Nobody waits for a silent rank: it is asked for a sign of life now and then, and not before its
connection is there, so that nothing piles up for a rank that is gone. One that says hello and still misses
deadline after deadline is left alone for longer each time. Knows no prompt and no lookup.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import Urls

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], m.Answer] = msgspec.msgpack.Decoder(m.Answer).decode
_NUMBER = struct.Struct(">Q")
_PROBE_INTERVAL_S = 1.0
# From the second deadline on that is missed without an answer in between, doubled with each.
_REST_S = (1.0, 30.0)
_RECONNECT_MS = (10, 1000)
# Answers that nobody waits for.
_NOBODY = 0


class Progress(Enum):
    WAITING = auto()
    ANSWERED = auto()
    # Some rank is silent.
    FAILED = auto()


@dataclass(slots=True, eq=False)
class Inquiry:
    """One question to some ranks, from `begin` to `end`."""

    number: int
    ranks: Collection[int]
    deadline_s: float
    timeout_s: float
    answers: dict[int, m.Answer] = field(default_factory=dict)

    @property
    def missing(self) -> set[int]:
        return set(self.ranks) - self.answers.keys()


class RankLink:
    """One rank. Frames are those that a REP or ROUTER socket echoes: a number, nothing, the message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.socket.connect(url)
        self.is_connected = False
        self.probed_s = -math.inf
        self.num_missed = 0
        self.missed_s = -math.inf
        self.rests_until_s = -math.inf

    def rest(self, asked_s: float, now_s: float) -> None:
        """It missed a deadline. What was asked before the last one was missed is no further sign."""
        if asked_s < self.missed_s:
            return
        self.missed_s = now_s
        first_s, longest_s = _REST_S
        if self.num_missed:
            self.rests_until_s = now_s + min(longest_s, first_s * 2 ** min(self.num_missed - 1, 10))
        self.num_missed += 1

    def send(self, number: int, encoded: bytes) -> None:
        """Dropped where too much waits for the rank already."""
        try:
            self.socket.send_multipart((_NUMBER.pack(number), b"", encoded))
        except zmq.Again:
            logger.debug("a question to a rank was dropped")

    def has_broken(self) -> bool:
        """Whether the connection ended since the last look; it may be there again. A new one begins without a past."""
        has_ended = False
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.is_connected = recv_monitor_message(self.monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            has_ended = has_ended or not self.is_connected
            self.probed_s = self.missed_s = self.rests_until_s = -math.inf
            self.num_missed = 0
        return has_ended

    def take(self) -> Iterator[tuple[int, m.Answer]]:
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 3 and len(frames[0]) == _NUMBER.size:
                yield _NUMBER.unpack(frames[0])[0], _read(frames[2])

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()


class RankLinks:
    """All ranks, in rank order. One thread at a time."""

    def __init__(self, urls: Urls, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._links = [RankLink(self._context, url) for url in urls]
        self._poller = zmq.Poller()
        for link in self._links:
            self._poller.register(link.socket, zmq.POLLIN)
            self._poller.register(link.monitor, zmq.POLLIN)
        self._silent: set[int] = set()
        self._open: dict[int, Inquiry] = {}
        self._last_number = _NOBODY

    def __len__(self) -> int:
        return len(self._links)

    def are_silent(self, ranks: Collection[int]) -> bool:
        """Whether one of these is. Those that are get asked for a sign of life."""
        self._take_in()
        for rank in self._silent:
            self._probe(self._links[rank])
        return not self._silent.isdisjoint(ranks)

    def begin(self, question: m.Question, ranks: Collection[int], timeout_s: float) -> Inquiry:
        self._last_number += 1
        inquiry = Inquiry(self._last_number, ranks, self._clock() + timeout_s, timeout_s)
        self._open[inquiry.number] = inquiry
        self._send(inquiry.number, question, ranks)
        return inquiry

    def progress(self, inquiry: Inquiry) -> Progress:
        """Without waiting. Once it failed, it may be ended, and its late answers are dropped."""
        self._take_in()
        missing = inquiry.missing
        if not missing:
            return Progress.ANSWERED
        if self._silent.isdisjoint(missing) and self._clock() < inquiry.deadline_s:
            return Progress.WAITING
        if self._silent.isdisjoint(missing):
            self._miss(missing, f"did not answer within {inquiry.timeout_s:g} s")
            for rank in missing:
                self._links[rank].rest(inquiry.deadline_s - inquiry.timeout_s, self._clock())
        return Progress.FAILED

    def end(self, inquiry: Inquiry) -> None:
        self._open.pop(inquiry.number, None)

    def ask(self, question: m.Question, ranks: Collection[int], timeout_s: float) -> list[m.Answer] | None:
        """Wait for the answers, in the order of `ranks`; None if one of these does not come."""
        inquiry = self.begin(question, ranks, timeout_s)
        try:
            while (progress := self.progress(inquiry)) is Progress.WAITING:
                left_s = max(0.0, inquiry.deadline_s - self._clock())
                self._poller.poll(math.ceil(left_s * 1000))
            return [inquiry.answers[rank] for rank in ranks] if progress is Progress.ANSWERED else None
        finally:
            self.end(inquiry)

    def tell(self, question: m.Question, ranks: Collection[int]) -> None:
        """Nobody waits for the answers, which are signs of life all the same."""
        self._send(_NOBODY, question, ranks)

    def _send(self, number: int, question: m.Question, ranks: Collection[int]) -> None:
        encoded = _encode(question)
        for rank in ranks:
            self._links[rank].send(number, encoded)

    def _take_in(self) -> None:
        for rank, link in enumerate(self._links):
            self._look_for_break(rank)
            for number, answer in link.take():
                self._listen(rank)
                inquiry = self._open.get(number)
                if inquiry is not None:
                    inquiry.answers[rank] = answer
                    link.num_missed = 0

    def _look_for_break(self, rank: int) -> None:
        """A connection that is there again, and has lost no question, is as good as ever."""
        link = self._links[rank]
        if not link.has_broken():
            return
        if not link.is_connected or any(rank in inquiry.missing for inquiry in self._open.values()):
            self._miss({rank}, "ended their connection")

    def _listen(self, rank: int) -> None:
        """It said something. What a dead rank said last is an answer, and no sign of life."""
        if rank not in self._silent:
            return
        self._look_for_break(rank)
        link = self._links[rank]
        if link.is_connected and self._clock() >= link.rests_until_s:
            self._silent.discard(rank)
            logger.info("rank %d answers lookups again", rank)

    def _miss(self, ranks: set[int], what: str) -> None:
        if not ranks <= self._silent:
            logger.warning("ranks %s %s: lookups miss until they answer", sorted(ranks), what)
        self._silent |= ranks

    def _probe(self, link: RankLink) -> None:
        now_s = self._clock()
        if link.is_connected and now_s - link.probed_s >= _PROBE_INTERVAL_S:
            link.probed_s = now_s
            link.send(_NOBODY, _encode(m.Hello()))

    def close(self) -> None:
        """Idempotent."""
        while self._links:
            self._links.pop().close()
        self._context.term()


def _read(frame: bytes) -> m.Answer:
    try:
        return _decode(frame)
    except msgspec.MsgspecError as error:
        return m.Failed(f"its answer cannot be read: {error}")
