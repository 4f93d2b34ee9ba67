"""From frames to engine calls and back. Every frame gets an answer; no frame stops the loop."""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from lmcache.engine.cache_server import MPCacheServer
from lmcache.engine.pool import SERVER_UID
from lmcache.engine.registry import Client
from lmcache.errors import DeclinedError, LMCacheError, ProtocolError, RequestRefusedError
from lmcache.protocol import messages as m
from lmcache.protocol.frames import BadVersionError, Header, decode_header, decode_request, encode_frame

logger = logging.getLogger(__name__)

ReplyOrNot = TypeVar("ReplyOrNot", bound="m.Reply | None")

_REGISTRATIONS = (m.RegisterWorker, m.RegisterScheduler)
_NEED_NO_CLIENT = (m.Hello, m.RegisterWorker, m.RegisterScheduler, m.Ping)


class Dispatcher:
    """Runs in the loop's thread. `token`: what clients must present; None where the loop is local.
    `post` sends a frame to a peer from any thread."""

    def __init__(
        self, engine: MPCacheServer, version: str, ipc_url: str, token: str | None, post: Callable[[bytes, bytes], None]
    ) -> None:
        self._engine = engine
        self._post = post
        self._version = version
        self._ipc_url = ipc_url
        self._token = token
        self._handlers: dict[type[msgspec.Struct], Callable[..., m.Reply | None]] = {
            m.Hello: self._hello,
            m.RegisterWorker: self._register_worker,
            m.RegisterScheduler: self._register_scheduler,
            m.Unregister: self._unregister,
            m.Ping: self._ping,
            m.Lookup: self._lookup,
            m.Hint: self._hint,
            m.Release: self._release,
            m.EndSession: self._end_session,
            m.ResetEngine: self._reset_engine,
            m.Reserve: self._reserve,
            m.Commit: self._commit,
            m.AbortBatch: self._abort_batch,
            m.Transferred: self._transferred,
            m.ChecksumResult: self._checksum_result,
        }

    def handle(self, peer: bytes, frame: bytes) -> bytes | None:
        """The reply frame to a request frame, whatever it holds; None: the reply follows later."""
        number = 0
        reply: m.Reply | None
        try:
            header = decode_header(frame)
            number = header.number
            request = decode_request(frame)
        except BadVersionError as error:
            number = error.number  # the header's place for it is the same in every version
            reply = self._failure(m.ErrorCode.BAD_VERSION, str(error))
        except ProtocolError as error:
            reply = self._failure(m.ErrorCode.BAD_MESSAGE if number else m.ErrorCode.BAD_FRAME, str(error))
        else:
            reply = self._reply_of(lambda: self._answer(peer, header, request))
        return None if reply is None else self._encode(number, reply)

    def _reply_of(self, answer: Callable[[], ReplyOrNot]) -> ReplyOrNot | m.Failure:
        """What was made of a request, or the failure that tells why nothing was."""
        try:
            return answer()
        except RequestRefusedError as error:
            return self._failure(error.code, str(error))
        except DeclinedError as error:
            return self._failure(m.ErrorCode.DECLINED, str(error))
        except LMCacheError as error:
            return self._failure(m.ErrorCode.INVALID, str(error))
        except Exception:  # the root of a request: log, count, go on
            logger.exception("a request failed")
            return self._failure(m.ErrorCode.INTERNAL, "internal error; the server's log has the details")

    def _encode(self, number: int, reply: m.Reply) -> bytes:
        try:
            return encode_frame(number, self._engine.boot_id, 0, reply)
        except (msgspec.MsgspecError, OverflowError, ValueError):
            logger.exception("an answer could not be encoded")
            failure = self._failure(m.ErrorCode.INTERNAL, "the answer could not be encoded; see the server's log")
            return encode_frame(number, self._engine.boot_id, 0, failure)

    def _failure(self, code: str, text: str) -> m.Failure:
        self._engine.metrics.bad_requests.add(1, code)
        return m.Failure(code, text)

    def _answer(self, peer: bytes, header: Header, message: m.Request) -> m.Reply | None:
        engine = self._engine
        with engine.mutex:
            client = engine.client(header.client_uid)
            if not isinstance(message, _NEED_NO_CLIENT):
                if header.boot_id != engine.boot_id:
                    raise RequestRefusedError(m.ErrorCode.STALE_BOOT, "the server was restarted; register again")
                if client is None:
                    raise RequestRefusedError(m.ErrorCode.UNREGISTERED, "this client is not registered; register first")
            if header.client_uid == SERVER_UID and isinstance(message, _REGISTRATIONS):
                raise RequestRefusedError(m.ErrorCode.INVALID, "client id 0 is the server's own; choose another")
            reply = self._handlers[type(message)](peer, header, client, message)
            engine.management.note_removed(engine.pool.l1)
            return reply

    def _check_token(self, token: str) -> None:
        if self._token is not None and not hmac.compare_digest(token.encode(), self._token.encode()):
            raise RequestRefusedError(
                m.ErrorCode.FORBIDDEN,
                "this server asks for a token: set lmcache.mp.token_file in the connector's config",
            )

    def _hello(self, peer: bytes, header: Header, client: Client | None, message: m.Hello) -> m.Reply:
        self._check_token(message.token)
        files, config = self._engine.pool.files, self._engine.config
        return m.Welcome(
            self._version, str(files.folder), files.pool_id, files.inode,
            config.chunk_size, config.hash_algorithm, self._ipc_url, wants_hints=self._engine.storage.has_adapters,
        )  # fmt: skip

    def _register_worker(
        self, peer: bytes, header: Header, client: Client | None, message: m.RegisterWorker
    ) -> m.Reply:
        self._check_token(message.token)
        engine = self._engine
        return engine.management.register_worker(
            engine.pool, header.client_uid, peer, message, engine.config.chunk_size
        )

    def _register_scheduler(
        self, peer: bytes, header: Header, client: Client | None, message: m.RegisterScheduler
    ) -> m.Reply:
        self._check_token(message.token)
        engine = self._engine
        return engine.management.register_scheduler(
            engine.pool, header.client_uid, peer, message, engine.config.chunk_size
        )

    def _unregister(self, peer: bytes, header: Header, client: Client, message: m.Unregister) -> m.Reply:
        self._engine.management.unregister(self._engine.pool, client.uid)
        return m.Done(1)

    def _ping(self, peer: bytes, header: Header, client: Client | None, message: m.Ping) -> m.Reply:
        is_known = client is not None and header.boot_id == self._engine.boot_id
        if message.instance_id is not None and not is_known:
            raise RequestRefusedError(m.ErrorCode.UNREGISTERED, "this client is not registered; register first")
        return self._engine.management.ping(client if message.instance_id is not None else None, message)

    def _lookup(self, peer: bytes, header: Header, client: Client, message: m.Lookup) -> m.Reply | None:
        answer = functools.partial(self._answer_later, peer, header.number)
        return self._engine.lookups.lookup(self._engine.pool, client, message, answer)

    def _answer_later(self, peer: bytes, number: int, make_reply: Callable[[], m.Reply]) -> None:
        """From another thread than the loop's."""
        with self._engine.mutex:
            reply = self._reply_of(make_reply)
            self._engine.management.note_removed(self._engine.pool.l1)
        self._post(peer, self._encode(number, reply))

    def _hint(self, peer: bytes, header: Header, client: Client, message: m.Hint) -> m.Reply:
        return self._engine.lookups.hint(self._engine.pool, client, message)

    def _release(self, peer: bytes, header: Header, client: Client, message: m.Release) -> m.Reply:
        return m.Done(
            self._engine.lookups.release(self._engine.pool.l1, client, message.request_id, message.num_chunks)
        )

    def _end_session(self, peer: bytes, header: Header, client: Client, message: m.EndSession) -> m.Reply:
        return m.Done(self._engine.lookups.end_session(self._engine.pool.l1, client, message.request_id))

    def _reset_engine(self, peer: bytes, header: Header, client: Client, message: m.ResetEngine) -> m.Reply:
        engine = self._engine
        return engine.management.reset_engine(engine.pool, client, message.epoch, engine.config.chunk_size)

    def _reserve(self, peer: bytes, header: Header, client: Client, message: m.Reserve) -> m.Reply:
        return self._engine.stores.reserve(
            self._engine.pool.l1, client, message.batch_id, message.root, message.cache_salt, message.digests,
            message.attempt,
        )  # fmt: skip

    def _commit(self, peer: bytes, header: Header, client: Client, message: m.Commit) -> m.Reply:
        return self._engine.stores.commit(self._engine.pool, client, message.batch_id, message.slots)

    def _abort_batch(self, peer: bytes, header: Header, client: Client, message: m.AbortBatch) -> m.Reply:
        return m.Done(self._engine.stores.abort(self._engine.pool.l1, client, message.batch_id))

    def _transferred(self, peer: bytes, header: Header, client: Client, message: m.Transferred) -> m.Reply:
        self._engine.management.count_transfer(client, message)
        return m.Done()

    def _checksum_result(self, peer: bytes, header: Header, client: Client, message: m.ChecksumResult) -> m.Reply:
        self._engine.checksums.answered(client.uid, message)
        return m.Done()


def encode_post(engine: MPCacheServer, message: Any) -> bytes:
    """A frame for a message the server sends on its own account (request number 0)."""
    return encode_frame(0, engine.boot_id, 0, message)
