"""The synchronous lookup server of a rank: one thread, one question after the other."""

from __future__ import annotations

import pathlib

import zmq

from lmcache.embedded.lookup import here
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.answers import answer, answer_now, encode
from lmcache.embedded.lookup.base import LookupTarget
from lmcache.embedded.lookup.listener import Listener


class LMCacheLookupServer:
    """A `LookupServer` that listens at a socket file, for clients of both kinds."""

    def __init__(self, path: pathlib.Path, target: LookupTarget) -> None:
        self._target = target
        self._url = f"ipc://{path}"
        self._listener = Listener(path, zmq.REP, self._handle)

    def start(self) -> None:
        self._listener.start()
        here.offer(self._url, self._target)

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """Answers what it is at, then ends; the socket file goes. Idempotent."""
        here.withdraw(self._url)
        self._listener.close()

    def _handle(self, frames: list[bytes]) -> list[bytes]:
        return [encode(answer(frames[-1], self._answer_question))]

    def _answer_question(self, question: m.Question) -> m.Answer:
        return answer_now(self._target, question)
