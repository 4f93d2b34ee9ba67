"""Prefetches on behalf of requests and operators: what is missing in L1 is asked of L2.

A locking lookup that L2 may lengthen is answered later, when what L2 holds has arrived or its
time is over. A hint starts the same before the scheduler asks. Operators name tokens only.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmcache.core.hashing import ChunkHashAlgorithm, chunk_digests
from lmcache.core.keys import ObjectKey
from lmcache.engine.pool import Pool
from lmcache.engine.registry import Client, ClientRegistry, Engine
from lmcache.l1.namespace import NamespaceKey
from lmcache.storage.manager import StorageManager
from lmcache.storage.prefetch_job import PrefetchPhase, PrefetchRequest

RequestKey = tuple[int, str]
Chains = Mapping[bytes, Sequence[bytes]]

_OUTSTANDING_MAX = 100_000
_TICKETS_MAX = 10_000
_HINT_S = 60.0
_OPERATOR_S = 600.0


@dataclass(slots=True)
class PrefetchTicket:
    """An operator's prefetch. Keys are chunks times ranks, over all engines that could use them."""

    request_id: str
    num_chunks: int
    total_keys: int = 0
    found_keys: int = 0
    num_left: int = 0

    @property
    def is_completed(self) -> bool:
        return not self.num_left


class PrefetchModule:
    """Called under the engine's mutex unless said otherwise."""

    def __init__(
        self,
        storage: StorageManager,
        registry: ClientRegistry,
        algorithm: ChunkHashAlgorithm,
        chunk_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._registry = registry
        self._algorithm = algorithm
        self._chunk_size = chunk_size
        self._clock = clock
        # Requests that may have a job: to look here is cheaper than to ask the controller.
        # The value is the lookup that waits for it, if one does.
        self._outstanding: OrderedDict[RequestKey, object] = OrderedDict()
        self._is_stopping = False
        self._tickets: OrderedDict[str, PrefetchTicket] = OrderedDict()
        self._numbers = itertools.count(1)

    # Requests

    def begin(
        self,
        pool: Pool,
        client: Client,
        request_id: str,
        key: NamespaceKey,
        digests: Sequence[bytes],
        first_chunk: int,
        wait_s: float,
        waiter: object,
        on_done: Callable[[bool], None],
    ) -> bool:
        """Fetch what follows the first chunks of a prompt. False: there is certainly nothing to wait for.
        `on_done` may cross with whatever calls the prefetch off; `settle` tells it."""
        engine = self._registry.engine_of(client)
        request_key = (client.uid, request_id)
        if self._is_stopping:
            return False
        if request_key not in self._outstanding and not self._is_promising(engine, key, digests, first_chunk):
            return False
        request = self._request(pool, engine, key, digests, first_chunk, wait_s)
        self._remember(request_key, waiter)
        self._storage.prefetches.submit(request_key, request, on_done)
        return True

    def settle(self, client_uid: int, request_id: str, waiter: object) -> bool:
        """The waiter has its answer. False: the request is over, or was asked anew, and waits for it no more."""
        if self._outstanding.get((client_uid, request_id)) is not waiter:
            return False
        self.release(client_uid, request_id)
        return True

    def hint(
        self, pool: Pool, client: Client, request_id: str, key: NamespaceKey, digests: Sequence[bytes], first_chunk: int
    ) -> None:
        """The same before the request is looked up; nobody waits yet."""
        engine = self._registry.engine_of(client)
        request_key = (client.uid, request_id)
        if request_key in self._outstanding or not self._is_promising(engine, key, digests, first_chunk):
            return
        self._remember(request_key, None)
        request = self._request(pool, engine, key, digests, first_chunk, _HINT_S)
        self._storage.prefetches.submit(request_key, request, None)

    def release(self, client_uid: int, request_id: str) -> None:
        """The request has what it needs, or is over."""
        request_key = (client_uid, request_id)
        if request_key in self._outstanding:
            del self._outstanding[request_key]
            self._storage.prefetches.release(request_key)

    def release_waiter(self, client_uid: int, request_id: str) -> None:
        """The request was asked anew: a lookup before that still waits is answered; nothing else is called off."""
        if self._outstanding.get((client_uid, request_id)) is not None:
            self.release(client_uid, request_id)

    def is_done(self, client_uid: int, request_id: str) -> bool:
        """Whether all that a fetch for this request brings is in L1 by now."""
        request_key = (client_uid, request_id)
        job = self._storage.prefetches.job(request_key) if request_key in self._outstanding else None
        return job is not None and job.phase is PrefetchPhase.DONE

    def stop_waiting(self) -> bool:
        """No further lookup waits for L2. Whether some still do; the controller's `answer_all` tells them."""
        self._is_stopping = True
        return any(waiter is not None for waiter in self._outstanding.values())

    def release_client(self, client_uid: int) -> None:
        for uid, request_id in [key for key in self._outstanding if key[0] == client_uid]:
            self.release(uid, request_id)

    def _remember(self, request_key: RequestKey, waiter: object) -> None:
        self._outstanding[request_key] = waiter
        if len(self._outstanding) > _OUTSTANDING_MAX:
            self._storage.prefetches.release(self._outstanding.popitem(last=False)[0])

    def _is_promising(self, engine: Engine, key: NamespaceKey, digests: Sequence[bytes], first_chunk: int) -> bool:
        if first_chunk >= len(digests) or not self._storage.has_adapters:
            return False
        probe = self._keys(engine, key, digests[first_chunk : first_chunk + 1])
        return self._storage.prefetches.might_hold(probe)

    @staticmethod
    def _keys(engine: Engine, key: NamespaceKey, digests: Sequence[bytes]) -> list[ObjectKey]:
        return [
            ObjectKey(digest, key.model_name, kv_rank, group_id, key.cache_salt)
            for digest in digests
            for kv_rank, group_id in engine.rank_groups()
        ]

    def _request(
        self,
        pool: Pool,
        engine: Engine,
        key: NamespaceKey,
        digests: Sequence[bytes],
        first_chunk: int,
        wait_s: float,
        retains: bool | None = None,
    ) -> PrefetchRequest:
        layouts = [engine.workers[rank].layout for rank in engine.source_ranks()]
        lengths = [layout.chunk_bytes(self._chunk_size) for layout in layouts if layout is not None]
        keeps = self._storage.prefetches.policy.retains if retains is None else retains
        return PrefetchRequest(
            pool, key, engine.rank_groups(), lengths, digests, first_chunk, self._clock() + wait_s, keeps
        )

    # Operators

    def roots_of(self, model_name: str, world_size: int) -> list[bytes]:
        """The roots of every engine of that model and size that is whole."""
        return sorted(self._engines_of(model_name, world_size)) if self._storage.has_adapters else []

    def _engines_of(self, model_name: str, world_size: int) -> dict[bytes, Engine]:
        return {
            engine.root: engine
            for engine in self._registry.engines.values()
            if engine.root and (engine.model_name, engine.world_size) == (model_name, world_size)
        }

    def chains(self, roots: Sequence[bytes], token_ids: Sequence[int]) -> Chains:
        """The digests of a prompt's whole chunks for each root. Not under the mutex: a long prompt takes a while.
        Raises TokenRangeError."""
        return {root: chunk_digests(self._algorithm, root, token_ids, self._chunk_size) for root in roots}

    def submit_chains(
        self, pool: Pool, model_name: str, world_size: int, cache_salt: str, chains: Chains
    ) -> PrefetchTicket | None:
        """Warm L1 with a prompt, for those of its engines that are still there. None: nothing to do."""
        engines = self._engines_of(model_name, world_size)
        wanted = {root: digests for root, digests in chains.items() if digests and root in engines}
        if not wanted:
            return None
        num_chunks = max(len(digests) for digests in wanted.values())
        ticket = PrefetchTicket(f"prefetch-{next(self._numbers)}", num_chunks, num_left=len(wanted))
        self._tickets[ticket.request_id] = ticket
        while len(self._tickets) > _TICKETS_MAX:
            self._tickets.popitem(last=False)
        for root, digests in wanted.items():
            key = NamespaceKey(model_name, root, cache_salt)
            request = self._request(pool, engines[root], key, digests, 0, _OPERATOR_S, retains=True)
            self._submit_for(ticket, (ticket.request_id, root), request)
        return ticket

    def _submit_for(self, ticket: PrefetchTicket, job_key: tuple[str, bytes], request: PrefetchRequest) -> None:
        ticket.total_keys += ticket.num_chunks * len(request.rank_groups)

        def on_done(_: bool) -> None:
            job = self._storage.prefetches.job(job_key)
            found_chunks = job.found_chunks if job is not None else 0
            ticket.found_keys += found_chunks * len(request.rank_groups)
            ticket.num_left -= 1

        self._storage.prefetches.submit(job_key, request, on_done)

    def ticket(self, request_id: str) -> PrefetchTicket | None:
        return self._tickets.get(request_id)

    @property
    def num_active(self) -> int:
        return self._storage.prefetches.num_jobs
