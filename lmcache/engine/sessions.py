"""Sessions: one engine request's life with us, keyed by (client, request id). Holds its read locks.

Only the loop's thread changes sessions; other threads may count them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from lmcache.l1.manager import L1Manager, Place
from lmcache.l1.namespace import NamespaceKey, RankGroup

SessionKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """All whole chunks of a request, held or not."""

    key: NamespaceKey
    rank_groups: list[RankGroup]
    digests: list[bytes]


@dataclass(slots=True)
class Session:
    """`locked` are places chunk-major, `num_ranks` of them per chunk; `prompt` is what was last asked for."""

    prompt: Prompt | None = None
    locked: list[Place] = field(default_factory=list)
    num_ranks: int = 1
    locked_bytes: int = 0
    last_used_s: float = 0.0


class SessionTable:
    """Ordered by last use, so that expiry looks only at what expired."""

    def __init__(self, clock: Callable[[], float], ttl_s: float, lock_ttl_s: float | None = None) -> None:
        """Idle sessions end after `ttl_s`; their locks may go before, after `lock_ttl_s`."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._lock_ttl_s = ttl_s if lock_ttl_s is None else min(lock_ttl_s, ttl_s)
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._locked_bytes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def locked_bytes(self, client_uid: int) -> int:
        return self._locked_bytes.get(client_uid, 0)

    def open(self, client_uid: int, request_id: str) -> Session:
        """The session of a request, made if there is none; counts as its use."""
        key = (client_uid, request_id)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session()
        session.last_used_s = self._clock()
        self._sessions.move_to_end(key)
        return session

    def set_locked(self, client_uid: int, session: Session, locked: list[Place], num_ranks: int, num_bytes: int) -> None:
        """What the session holds now; the caller has locked and unlocked accordingly."""
        total = self._locked_bytes.get(client_uid, 0) + num_bytes - session.locked_bytes
        if total:
            self._locked_bytes[client_uid] = total
        else:
            self._locked_bytes.pop(client_uid, None)
        session.locked, session.num_ranks, session.locked_bytes = locked, num_ranks, num_bytes

    def release(self, l1: L1Manager, client_uid: int, request_id: str, num_chunks: int) -> int:
        """Keep the locks of the first `num_chunks` chunks; returns how many places were given back."""
        session = self._sessions.get((client_uid, request_id))
        if session is None:
            return 0
        kept = num_chunks * session.num_ranks
        given_back = session.locked[kept:]
        if given_back:
            l1.unlock(given_back)
            left = session.locked[:kept]
            num_bytes = session.locked_bytes * len(left) // len(session.locked)
            self.set_locked(client_uid, session, left, session.num_ranks, num_bytes)
        return len(given_back)

    def end(self, l1: L1Manager, client_uid: int, request_id: str) -> bool:
        """Give back all locks and forget the session. False if there was none.

        Its chunks count as used now, tail first: what was stored after the lookup must not
        outlive the head it hangs on.
        """
        self.release(l1, client_uid, request_id, 0)
        session = self._sessions.pop((client_uid, request_id), None)
        if session is not None and session.prompt is not None:
            l1.touch(session.prompt.key, session.prompt.rank_groups, session.prompt.digests)
        return session is not None

    def end_client(self, l1: L1Manager, client_uid: int) -> int:
        """End every session of a client that is gone."""
        requests = [request_id for uid, request_id in self._sessions if uid == client_uid]
        for request_id in requests:
            self.end(l1, client_uid, request_id)
        return len(requests)

    def expire(self, l1: L1Manager) -> int:
        """End sessions idle for too long; those idle for less lose their locks. Returns how many ended.

        A load that comes later still finds out by its own checks whether it read what it was promised.
        """
        now_s, ended = self._clock(), []
        for (client_uid, request_id), session in self._sessions.items():
            if session.last_used_s > now_s - self._lock_ttl_s:
                break
            self.release(l1, client_uid, request_id, 0)
            if session.last_used_s <= now_s - self._ttl_s:
                ended.append((client_uid, request_id))
        for key in ended:
            del self._sessions[key]
        return len(ended)
