"""The synchronous lookup server of a rank: one thread, one question after the other."""

from __future__ import annotations

import logging
import pathlib
import threading

import msgspec
import zmq

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import LookupTarget
from lmcache.errors import ConfigError, DeclinedError, LMCacheError
from lmcache.protocol.blobs import split_digests

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.Question).decode
_THREAD_NAME = "lmcache-lookup-server"
# Within the context of one server.
_STOP_URL = "inproc://stop"


class LMCacheLookupServer:
    """A `LookupServer` that listens at a socket file. `start` once, then `close`."""

    def __init__(self, path: pathlib.Path, target: LookupTarget) -> None:
        self.path = path
        self._target = target
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises ConfigError."""
        context = self._context = zmq.Context()
        socket, stopping = context.socket(zmq.REP), context.socket(zmq.PAIR)
        for each in (socket, stopping):
            each.setsockopt(zmq.LINGER, 0)
        try:
            socket.bind(f"ipc://{self.path}")
            stopping.bind(_STOP_URL)
        except zmq.ZMQError as error:
            socket.close()
            stopping.close()
            raise ConfigError(f"cannot listen for lookups at {self.path}: {error}") from error
        self._thread = threading.Thread(target=self._run, args=(socket, stopping), name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """Answers what it is at, then ends; the socket file goes. Idempotent."""
        context, self._context = self._context, None
        if context is None:
            return
        thread, self._thread = self._thread, None
        if thread is not None:
            with context.socket(zmq.PAIR) as stop:
                stop.setsockopt(zmq.LINGER, 0)
                stop.connect(_STOP_URL)
                stop.send(b"")
                thread.join()
            self.path.unlink(missing_ok=True)
        context.term()

    def _run(self, socket: zmq.Socket[bytes], stopping: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(stopping, zmq.POLLIN)
        with socket, stopping:
            while True:
                ready = dict(poller.poll())
                if stopping in ready:
                    return
                socket.send(_encode(self._answer(socket.recv())))

    def _answer(self, frame: bytes) -> m.Answer:
        try:
            return self._answer_question(_decode(frame))
        except DeclinedError as error:
            return m.Declined(str(error))
        except (msgspec.MsgspecError, LMCacheError) as error:
            return m.Failed(str(error))
        except Exception as error:  # the root of a thread: log, answer, go on
            logger.exception("a lookup failed")
            return m.Failed(f"{type(error).__name__}: {error}")

    def _answer_question(self, question: m.Question) -> m.Answer:
        if isinstance(question, m.Hello):
            return m.Introduction(msgspec.json.encode(self._target.introduce()))
        digests = tuple(split_digests(question.digests))
        prompt = Prompt(question.root, question.cache_salt, digests, question.tail_blocks)
        return m.Found(self._target.lookup(question.lookup_id, prompt, question.wait_s))
