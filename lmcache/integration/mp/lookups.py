"""A scheduler's questions to the server: which prefix is held, and promises given back.

Belongs to the scheduler's thread. No call waits longer than it is told to; a server that
does not answer in time is taken for gone until the control thread says otherwise.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmcache.errors import LMCacheError, RequestRefusedError, ServerUnavailableError
from lmcache.integration.mp.jobs import PromisedChunk
from lmcache.integration.mp.membership import Joined, Membership
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import split_places
from lmcache.transport.client import Connection

_UNSENT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Promise:
    """Leading chunks of a prompt that stay readable until released. `chunks[i]`: one place per rank."""

    boot_id: int
    pool_id: bytes
    chunk_size: int
    chunks: tuple[tuple[PromisedChunk, ...], ...]


# Until the first answer of a boot, for a server that answered our control thread a moment ago: else the first
# prompts after every join would be misses.
_CONNECT_S = 0.1

NOTHING = Promise(0, b"", 0, ())


@dataclass(slots=True)
class _Asked:
    number: int
    joined: Joined
    digests: Sequence[bytes]
    deadline_s: float


class LookupClient:
    """Not thread-safe."""

    def __init__(
        self,
        membership: Membership,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
        prefetch_wait_s: float = 0.0,
    ) -> None:
        """An answer may take `deadline_s`, and `prefetch_wait_s` more where the server fetches from its tiers."""
        self._membership = membership
        self._deadline_s = deadline_s
        self._prefetch_wait_s = prefetch_wait_s
        self._clock = clock
        self._connection: Connection | None = None
        self._boot_id = 0
        self._asked: dict[str, _Asked] = {}
        self._unsent: deque[tuple[int, m.Request]] = deque(maxlen=_UNSENT_MAX)

    def lookup(self, request_id: str, cache_salt: str, digests: Sequence[bytes], wait_s: float) -> Promise | None:
        """What is held of these chunks; None: not known yet, ask again. Locks what it promises."""
        asked = self._asked.get(request_id)
        if asked is None:
            asked = self._ask(request_id, cache_salt, digests)
            if asked is None:
                return NOTHING
        connection = self._connected(asked.joined)
        try:
            reply = connection.wait(asked.number, wait_s)
        except ServerUnavailableError:
            self._membership.lose(asked.joined.boot_id)
            del self._asked[request_id]
            return NOTHING
        except RequestRefusedError as error:
            self._refused(asked, error)
            del self._asked[request_id]
            return NOTHING
        if reply is None:
            if not self._is_current(asked.joined):
                del self._asked[request_id]  # whoever should answer is gone
                return NOTHING
            if self._clock() < asked.deadline_s and connection.is_connected:
                return None
            self.cancel(request_id)  # first: once the registration is lost nothing can be posted to it
            self._membership.lose(asked.joined.boot_id)
            return NOTHING
        del self._asked[request_id]
        return self._promise(asked, reply) if isinstance(reply, m.Found) else NOTHING

    def _is_current(self, joined: Joined) -> bool:
        current = self._membership.current
        return current is not None and current.boot_id == joined.boot_id

    def prepare(self) -> None:
        """Begin to connect, so that the first lookup of a boot need not wait for it."""
        joined = self._membership.current
        if joined is not None and self._boot_id != joined.boot_id:
            self._connected(joined)

    def hint(self, request_id: str, cache_salt: str, digests: Sequence[bytes]) -> None:
        """Announce a request, where the server has tiers to fetch from."""
        joined = self._membership.current
        if joined is not None and joined.welcome.wants_hints:
            self._post(joined, m.Hint(request_id, cache_salt, b"".join(digests)))

    def release(self, request_id: str, promise: Promise, num_chunks: int) -> None:
        """Keep the promise for the first `num_chunks` chunks only."""
        self._post_to_boot(promise.boot_id, m.Release(request_id, num_chunks))

    def end(self, request_id: str, boot_id: int) -> None:
        """The request is over: everything promised to it may go, and so may an answer under way."""
        asked = self._asked.pop(request_id, None)
        if asked is not None:
            if self._connection is not None and self._boot_id == asked.joined.boot_id:
                self._connection.forget(asked.number)
            # In the order of this connection: the server must see the lookup first.
            self._post_to_boot(asked.joined.boot_id, m.EndSession(request_id))
        elif boot_id:
            # Answered already, and nothing of this request follows: it can wait for the control thread.
            self._membership.post_later(boot_id, m.EndSession(request_id))

    def cancel(self, request_id: str) -> None:
        """Stop waiting for an answer; what it may still promise is given back."""
        if request_id in self._asked:
            self.end(request_id, 0)

    def reset(self, epoch: bytes, timeout_s: float) -> bool:
        """Tell the server, and wait for its word, that nothing written before is this engine's KV."""
        # An answer under way would promise it still.
        for request_id in list(self._asked):
            self.cancel(request_id)
        joined = self._membership.current
        if joined is None:
            return False
        try:
            self._connected(joined).call(m.ResetEngine(epoch), joined.boot_id, timeout_s)
        except LMCacheError:
            self._membership.lose(joined.boot_id)
            return False
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, request_id: str, cache_salt: str, digests: Sequence[bytes]) -> _Asked | None:
        self._send_unsent()
        joined = self._membership.current
        if joined is None or not digests:
            return None
        try:
            wait_s = self._prefetch_wait_s if joined.welcome.wants_hints else 0.0
            message = m.Lookup(request_id, cache_salt, b"".join(digests), wait_s)
            connection = self._connected(joined)
            number = connection.send(message, joined.boot_id, 0.0 if connection.boot_id else _CONNECT_S)
        except ServerUnavailableError:
            return None
        asked = _Asked(number, joined, digests, self._clock() + self._deadline_s + wait_s)
        self._asked[request_id] = asked
        return asked

    def _promise(self, asked: _Asked, found: m.Found) -> Promise:
        places = split_places(found.places)
        if not found.num_chunks:
            return Promise(asked.joined.boot_id, b"", asked.joined.welcome.chunk_size, ())
        num_ranks = len(places) // found.num_chunks
        chunks = tuple(
            tuple(PromisedChunk(digest, *place) for place in places[index * num_ranks : (index + 1) * num_ranks])
            for index, digest in enumerate(asked.digests[: found.num_chunks])
        )
        welcome = asked.joined.welcome
        return Promise(asked.joined.boot_id, welcome.pool_id, welcome.chunk_size, chunks)

    def _refused(self, asked: _Asked, error: RequestRefusedError) -> None:
        if error.code in (m.ErrorCode.UNREGISTERED, m.ErrorCode.NOT_READY):
            self._membership.lose(asked.joined.boot_id)

    def _post_to_boot(self, boot_id: int, message: m.Request) -> None:
        """Only to the boot it is meant for: another one knows nothing of it. While the registration
        is being renewed, it waits for the next chance."""
        self._unsent.append((boot_id, message))
        self._send_unsent()

    def _send_unsent(self) -> None:
        joined = self._membership.current
        while joined is not None and self._unsent:
            boot_id, message = self._unsent.popleft()
            if boot_id == joined.boot_id:
                self._post(joined, message)

    def _post(self, joined: Joined, message: m.Request) -> None:
        self._connected(joined).post(message, joined.boot_id)

    def _connected(self, joined: Joined) -> Connection:
        """The connection to this boot."""
        if self._connection is None or self._boot_id != joined.boot_id:
            self.close()
            self._asked = {}
            self._connection = Connection(joined.url, self._membership.client_uid)
            self._boot_id = joined.boot_id
        return self._connection
