"""The asynchronous lookup server of a rank: one thread that waits for nobody, answers in any order."""

from __future__ import annotations

import pathlib

import zmq

from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.answers import answer, answer_now, encode, prompt_of
from lmcache.embedded.lookup.base import LookupTarget
from lmcache.embedded.lookup.listener import Listener


class LMCacheAsyncLookupServer:
    """A `LookupServer` that listens at a socket file, for clients of both kinds.

    What a peer put before its question, up to an empty frame, goes before the answer: so it tells its
    questions apart.
    """

    def __init__(self, path: pathlib.Path, target: LookupTarget) -> None:
        self._target = target
        self._listener = Listener(path, zmq.ROUTER, self._handle)

    def start(self) -> None:
        self._listener.start()

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """What is under way is not answered any more; the socket file goes. Idempotent."""
        self._listener.close()

    def _handle(self, frames: list[bytes]) -> list[bytes] | None:
        envelope, frame = frames[:-1], frames[-1]
        if not envelope or envelope[-1]:  # from no client of lookups
            return None
        found = answer(frame, lambda question: self._answer_question(envelope, question))
        return [*envelope, encode(found)] if found is not None else None

    def _answer_question(self, envelope: list[bytes], question: m.Question) -> m.Answer | None:
        """None: it is answered when the target has found something."""
        if not isinstance(question, m.Lookup):
            return answer_now(self._target, question)

        def on_found(num_chunks: int) -> None:
            self._listener.post([*envelope, encode(m.Found(num_chunks))])

        self._target.lookup_later(question.lookup_id, prompt_of(question), question.wait_s, on_found)
        return None
