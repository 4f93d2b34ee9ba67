"""The lookup module: hints, locking lookups, release, end of session."""

from __future__ import annotations

from lmcache.core.keys import check_cache_salt
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.registry import Client, ClientRegistry, Engine
from lmcache.engine.sessions import Prompt, SessionTable
from lmcache.errors import RequestRefusedError
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_digests, split_places
from lmcache.protocol.messages import ErrorCode, Found
from lmcache.telemetry.steps import StepObserver


class LookupModule:
    """Called under the engine's mutex."""

    def __init__(
        self,
        registry: ClientRegistry,
        sessions: SessionTable,
        metrics: EngineMetrics,
        chunk_size: int,
        lock_bytes_max: int,
        steps: StepObserver,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._metrics = metrics
        self._chunk_size = chunk_size
        self._lock_bytes_max = lock_bytes_max
        self._steps = steps

    def lookup(
        self, l1: L1Manager, client: Client, request_id: str, salt: str, digest_blob: bytes, lock: bool
    ) -> Found:
        """The longest prefix every rank holds. Locking again for a request replaces its locks."""
        engine = self._ready_engine(client)
        key = NamespaceKey(client.model_name, engine.root, check_cache_salt(salt))
        digests = split_digests(digest_blob)
        rank_groups = engine.rank_groups()
        session = self._sessions.open(client.uid, request_id) if lock else None
        budget = None
        if session is not None:
            left = self._lock_bytes_max - self._sessions.locked_bytes(client.uid)
            budget = LockBudget(left, lambda place: self._sessions.holds(client.uid, place))
        slots, places = l1.lookup(key, rank_groups, digests, budget)
        self._steps.reached("lookup.locked")
        if session is not None:
            session.prompt = Prompt(key, rank_groups, digests)
            old = session.locked
            locked = [Place(slot, word, length) for slot, word, _, length in split_places(places)]
            self._sessions.set_locked(client.uid, session, locked, len(rank_groups))
            l1.unlock(old)
            self._count(client.model_name, salt, len(digests), len(slots) // len(rank_groups), len(slots))
        self._steps.reached("lookup.promised")
        return Found(len(slots) // len(rank_groups), places)

    def _count(self, model_name: str, salt: str, num_asked: int, num_found: int, num_slots: int) -> None:
        metrics = self._metrics
        metrics.lookups.add(1)
        metrics.lookup_requested.add(num_asked * self._chunk_size, model_name, salt)
        metrics.lookup_hit.add(num_found * self._chunk_size, model_name, salt)
        metrics.lookup_hit_l1.add(num_found * self._chunk_size, model_name, salt)
        metrics.l1_read.add(num_slots, salt)

    def release(self, l1: L1Manager, client: Client, request_id: str, num_chunks: int) -> int:
        num_given_back = self._sessions.release(l1, client.uid, request_id, max(0, num_chunks))
        self._steps.reached("lookup.released")
        return num_given_back

    def end_session(self, l1: L1Manager, client: Client, request_id: str) -> int:
        was_open = self._sessions.end(l1, client.uid, request_id)
        self._steps.reached("lookup.ended")
        return int(was_open)

    def _ready_engine(self, client: Client) -> Engine:
        engine = self._registry.engine_of(client)
        if not engine.root:
            missing = engine.missing_ranks
            reason = f"ranks {missing} have not registered" if missing else "its scheduler has not registered"
            raise RequestRefusedError(ErrorCode.NOT_READY, f"engine {engine.engine_id} is not whole: {reason}")
        return engine
