"""The lookup module: hints, locking lookups, release, end of session."""

from __future__ import annotations

from collections.abc import Callable

from lmcache.core.keys import check_cache_salt
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.pool import Pool
from lmcache.engine.prefetches import PrefetchModule
from lmcache.engine.registry import Client, ClientRegistry, Engine
from lmcache.engine.sessions import Prompt, SessionTable
from lmcache.errors import RequestRefusedError
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_digests, split_places
from lmcache.protocol.messages import ErrorCode, Failure, Found, Hint, Lookup, Reply
from lmcache.telemetry.steps import StepObserver

# How long a client may ask us to wait for L2.
_WAIT_S_MAX = 600.0

# Sends a reply later: what makes it is called under the engine's mutex.
Answer = Callable[[Callable[[], Reply]], None]


class LookupModule:
    """Called under the engine's mutex."""

    def __init__(
        self,
        registry: ClientRegistry,
        sessions: SessionTable,
        prefetches: PrefetchModule,
        metrics: EngineMetrics,
        chunk_size: int,
        lock_bytes_max: int,
        steps: StepObserver,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._prefetches = prefetches
        self._metrics = metrics
        self._chunk_size = chunk_size
        self._lock_bytes_max = lock_bytes_max
        self._steps = steps

    def lookup(self, pool: Pool, client: Client, asked: Lookup, answer: Answer) -> Found | None:
        """The longest prefix every rank holds, locked. Locking again for a request replaces its locks.

        None: L2 may hold more of it; `answer` is called with the reply, from another thread and
        under the mutex, when that is known or `asked.wait_s` is over.
        """
        prompt = self._prompt(client, asked.cache_salt, asked.digests)
        is_fetched = self._prefetches.is_done(client.uid, asked.request_id)  # then L1 has it when it is asked
        found, is_cut = self._lock_prefix(pool.l1, client, asked.request_id, prompt)
        num_in_l1 = found.num_chunks
        has_all = num_in_l1 == len(prompt.digests)

        def on_done(_: bool) -> None:
            answer(lambda: self._finish(pool.l1, client, asked, prompt, num_in_l1))

        if not has_all and not is_cut and asked.wait_s > 0 and self._prefetches.begin(
            pool, client, asked.request_id, prompt.key, prompt.digests, num_in_l1,
            min(asked.wait_s, _WAIT_S_MAX), asked, on_done,
        ):  # fmt: skip
            return None
        if has_all or is_fetched:
            self._prefetches.release(client.uid, asked.request_id)
        else:  # what a hint began goes on, for another lookup
            self._prefetches.release_waiter(client.uid, asked.request_id)
        self._count(client.model_name, prompt, num_in_l1, num_in_l1)
        return found

    def _finish(self, l1: L1Manager, client: Client, asked: Lookup, prompt: Prompt, num_in_l1: int) -> Found | Failure:
        """The reply to a lookup that waited for L2. What it was asked under may be over by now."""
        if self._registry.clients.get(client.uid) is not client:
            return Failure(ErrorCode.UNREGISTERED, "this client is not registered any more")
        if not self._prefetches.settle(client.uid, asked.request_id, asked):
            return Found(0, b"")  # whoever called it off has settled what was held
        if self._registry.engine_of(client).root != prompt.key.root:
            return Found(0, b"")  # of an engine that was reset, or is not whole any more
        found, _ = self._lock_prefix(l1, client, asked.request_id, prompt)
        self._count(client.model_name, prompt, found.num_chunks, min(num_in_l1, found.num_chunks))
        return found

    def hint(self, pool: Pool, client: Client, hint: Hint) -> Found:
        """What is held now; what is missing is fetched from L2 ahead of the lookup. Takes no lock."""
        prompt = self._prompt(client, hint.cache_salt, hint.digests)
        slots, places = pool.l1.lookup(prompt.key, prompt.rank_groups, prompt.digests, None)
        num_chunks = len(slots) // len(prompt.rank_groups)
        self._prefetches.hint(pool, client, hint.request_id, prompt.key, prompt.digests, num_chunks)
        return Found(num_chunks, places)

    def _prompt(self, client: Client, salt: str, digest_blob: bytes) -> Prompt:
        engine = self._ready_engine(client)
        key = NamespaceKey(client.model_name, engine.root, check_cache_salt(salt))
        return Prompt(key, engine.rank_groups(), split_digests(digest_blob))

    def _lock_prefix(self, l1: L1Manager, client: Client, request_id: str, prompt: Prompt) -> tuple[Found, bool]:
        """What is locked now, and whether L1 holds more of it than this client may lock."""
        session = self._sessions.open(client.uid, request_id)
        left = self._lock_bytes_max - self._sessions.locked_bytes(client.uid)
        budget = LockBudget(left, lambda place: self._sessions.holds(client.uid, place))
        slots, places = l1.lookup(prompt.key, prompt.rank_groups, prompt.digests, budget)
        self._steps.reached("lookup.locked")
        session.prompt = prompt
        old = session.locked
        locked = [Place(slot, word, length) for slot, word, _, length in split_places(places)]
        self._sessions.set_locked(client.uid, session, locked, len(prompt.rank_groups))
        l1.unlock(old)
        self._steps.reached("lookup.promised")
        return Found(len(slots) // len(prompt.rank_groups), places), budget.is_spent

    def _count(self, model_name: str, prompt: Prompt, num_found: int, num_in_l1: int) -> None:
        metrics, salt = self._metrics, prompt.key.cache_salt
        metrics.lookups.add(1)
        metrics.lookup_requested.add(len(prompt.digests) * self._chunk_size, model_name, salt)
        metrics.lookup_hit.add(num_found * self._chunk_size, model_name, salt)
        metrics.lookup_hit_l1.add(num_in_l1 * self._chunk_size, model_name, salt)
        metrics.lookup_hit_l2.add((num_found - num_in_l1) * self._chunk_size, model_name, salt)
        metrics.lifecycle.read(prompt.digests[:num_found], salt)
        metrics.l1_read.add(num_found * len(prompt.rank_groups), salt)

    def release(self, l1: L1Manager, client: Client, request_id: str, num_chunks: int) -> int:
        num_given_back = self._sessions.release(l1, client.uid, request_id, max(0, num_chunks))
        self._steps.reached("lookup.released")
        return num_given_back

    def end_session(self, l1: L1Manager, client: Client, request_id: str) -> int:
        self._prefetches.release(client.uid, request_id)
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
