"""Sessions: one engine request's life with us, keyed by (client, request id). Holds its read locks.

Only the loop's thread changes sessions; other threads may count them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.values import Place

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
    last_used_s: float = 0.0


class _HeldPlaces:
    """How many sessions of one client hold each place, and the bytes of all of them."""

    def __init__(self) -> None:
        self.counts: dict[Place, int] = {}
        self.num_bytes = 0

    def add(self, places: list[Place]) -> None:
        for place in places:
            count = self.counts.get(place, 0)
            self.counts[place] = count + 1
            if not count:
                self.num_bytes += place.length

    def remove(self, places: list[Place]) -> None:
        for place in places:
            count = self.counts[place] - 1
            if count:
                self.counts[place] = count
            else:
                del self.counts[place]
                self.num_bytes -= place.length


class SessionTable:
    """Ordered by last use, so that expiry looks only at what expired."""

    def __init__(self, clock: Callable[[], float], ttl_s: float, lock_ttl_s: float | None = None) -> None:
        """Idle sessions end after `ttl_s`; their locks may go before, after `lock_ttl_s`."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._lock_ttl_s = ttl_s if lock_ttl_s is None else min(lock_ttl_s, ttl_s)
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._held: dict[int, _HeldPlaces] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def locked_bytes(self, client_uid: int) -> int:
        """Bytes of the distinct places a client holds: a prefix shared by its requests counts once."""
        held = self._held.get(client_uid)
        return held.num_bytes if held is not None else 0

    def holds(self, client_uid: int, place: Place) -> bool:
        held = self._held.get(client_uid)
        return held is not None and place in held.counts

    def open(self, client_uid: int, request_id: str) -> Session:
        """The session of a request, made if there is none; counts as its use."""
        key = (client_uid, request_id)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = Session()
        session.last_used_s = self._clock()
        self._sessions.move_to_end(key)
        return session

    def set_locked(self, client_uid: int, session: Session, locked: list[Place], num_ranks: int) -> None:
        """What the session holds now; the caller has locked and unlocked accordingly."""
        held = self._held.setdefault(client_uid, _HeldPlaces())
        held.add(locked)
        held.remove(session.locked)
        if not held.counts:
            del self._held[client_uid]
        session.locked, session.num_ranks = locked, num_ranks

    def release(self, l1: L1Manager, client_uid: int, request_id: str, num_chunks: int) -> int:
        """Keep the locks of the first `num_chunks` chunks; returns how many places were given back."""
        session = self._sessions.get((client_uid, request_id))
        if session is None:
            return 0
        kept = num_chunks * session.num_ranks
        given_back = session.locked[kept:]
        if given_back:
            l1.unlock(given_back)
            self.set_locked(client_uid, session, session.locked[:kept], session.num_ranks)
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
