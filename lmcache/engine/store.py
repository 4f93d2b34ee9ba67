"""The store module: reserve, commit and abort of batches, by worker and batch id."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from lmcache.core.keys import check_cache_salt
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.pool import Pool
from lmcache.engine.registry import Client, ClientKind, ClientRegistry
from lmcache.errors import RequestRefusedError
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.memory.records import ready_word
from lmcache.protocol.blobs import split_digests, split_places, split_slots
from lmcache.protocol.messages import Committed, ErrorCode, Reserved, ReserveStatus
from lmcache.storage.store_controller import StoreController
from lmcache.telemetry.steps import StepObserver

_ABORTED_KEPT = 1024
_DIGESTS_MAX = 65536


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one reserve was granted, all for one tenant."""

    cache_salt: str
    places: list[Place]


@dataclass(slots=True)
class _WorkerBatches:
    """Open batches of one worker, and batches it gave up before we saw them."""

    open: dict[int, _Batch] = field(default_factory=dict)
    aborted: OrderedDict[int, None] = field(default_factory=OrderedDict)


class StoreModule:
    """Called under the engine's mutex."""

    def __init__(
        self,
        registry: ClientRegistry,
        to_l2: StoreController,
        metrics: EngineMetrics,
        chunk_size: int,
        steps: StepObserver,
    ) -> None:
        self._registry = registry
        self._to_l2 = to_l2
        self._metrics = metrics
        self._chunk_size = chunk_size
        self._steps = steps
        self._batches: dict[int, _WorkerBatches] = {}

    @property
    def num_open_batches(self) -> int:
        return sum(len(batches.open) for batches in self._batches.values())

    def reserve(
        self, l1: L1Manager, client: Client, batch_id: int, root: bytes, salt: str, digest_blob: bytes, attempt: int
    ) -> Reserved:
        """Places for the chunks that nobody holds or writes. A repeated batch id is refused."""
        if attempt != client.attempt:
            raise RequestRefusedError(ErrorCode.INVALID, "a registration overtook this reserve; ask again")
        if client.kind is not ClientKind.WORKER or client.layout is None:
            raise RequestRefusedError(ErrorCode.FORBIDDEN, "only a worker stores")
        engine = self._registry.engine_of(client)
        if not engine.root or root != engine.root:
            raise RequestRefusedError(ErrorCode.INVALID, "the root is not that of this engine now: it was reset")
        batches = self._batches.setdefault(client.uid, _WorkerBatches())
        if batch_id in batches.open or batch_id in batches.aborted:
            raise RequestRefusedError(ErrorCode.INVALID, f"batch {batch_id} was reserved or given up before")
        digests = split_digests(digest_blob)
        if len(digests) > _DIGESTS_MAX:
            raise RequestRefusedError(
                ErrorCode.INVALID, f"a batch has at most {_DIGESTS_MAX} chunks (got {len(digests)})"
            )
        key = NamespaceKey(client.model_name, root, check_cache_salt(salt))
        rank_group = (engine.kv_rank(client.rank), 0)
        length = client.layout.chunk_bytes(self._chunk_size)
        result = l1.reserve(key, rank_group, client.uid, digests, length)
        places = l1.places(result.slots)
        if result.slots:
            # A batch that was granted nothing is over: its worker has nothing to commit.
            granted = [Place(slot, word) for slot, word, _, _ in split_places(places)]
            batches.open[batch_id] = _Batch(salt, granted)
        self._steps.reached("store.reserved")
        self._count(client.model_name, result.statuses)
        return Reserved(bytes(result.statuses), places)

    def _count(self, model_name: str, statuses: bytearray) -> None:
        metrics = self._metrics
        metrics.store_requests.add(1)
        metrics.l1_allocation_failure.add(statuses.count(ReserveStatus.NO_ROOM), "l1_store", model_name)
        for status in (ReserveStatus.EXISTS, ReserveStatus.BUSY, ReserveStatus.NO_ROOM):
            metrics.skipped_stores.add(statuses.count(status), status.name.lower())

    def commit(self, pool: Pool, client: Client, batch_id: int, slot_blob: bytes) -> Committed:
        """Make the written slots of a batch findable and hand them on to L2, give up the rest of it."""
        l1 = pool.l1
        written = [Place(slot, word) for slot, word in split_slots(slot_blob)]
        salts = self._salts_of(l1, client.uid, batch_id, written)
        accepted = set(l1.commit(client.uid, written))
        self._steps.reached("store.committed")
        self._close_batch(l1, client.uid, batch_id, {place.slot for place in written})
        self._steps.reached("store.closed")
        metrics = self._metrics
        metrics.store_finished.add(1)
        metrics.refused_commits.add(len(written) - len(accepted))
        for salt, num_accepted in Counter(salts[slot] for slot in accepted).items():
            metrics.l1_write.add(num_accepted, salt)
        self._hand_on(pool, client, [place for place in written if place.slot in accepted], salts)
        return Committed(len(accepted), len(written) - len(accepted))

    def _hand_on(self, pool: Pool, client: Client, accepted: list[Place], salts: dict[int, str]) -> None:
        if not self._to_l2.has_tiers or client.layout is None:
            return
        length = client.layout.chunk_bytes(self._chunk_size)
        for salt in {salts[place.slot] for place in accepted}:
            places = [
                Place(place.slot, ready_word(place.slot_word), length)
                for place in accepted
                if salts[place.slot] == salt
            ]
            self._to_l2.submit(pool, places, client.layout_text, salt, client.model_name)

    def _salts_of(self, l1: L1Manager, client_uid: int, batch_id: int, written: list[Place]) -> dict[int, str]:
        """The tenant of each slot that may be accepted: that of its batch, or what its record says.

        A batch is unknown, and its slots are not, where its worker registered anew on the way.
        """
        batches = self._batches.get(client_uid)
        batch = batches.open.get(batch_id) if batches is not None else None
        if batch is not None and set(written) <= set(batch.places):
            return dict.fromkeys((place.slot for place in written), batch.cache_salt)
        salts = l1.salts_of(written)
        return {place.slot: salt for place, salt in zip(written, salts, strict=True)}

    def abort(self, l1: L1Manager, client: Client, batch_id: int) -> int:
        batches = self._batches.setdefault(client.uid, _WorkerBatches())
        batches.aborted[batch_id] = None
        while len(batches.aborted) > _ABORTED_KEPT:
            batches.aborted.popitem(last=False)
        return self._close_batch(l1, client.uid, batch_id, set())

    def _close_batch(self, l1: L1Manager, client_uid: int, batch_id: int, written: set[int]) -> int:
        batches = self._batches.get(client_uid)
        batch = batches.open.pop(batch_id, None) if batches is not None else None
        left = [place for place in batch.places if place.slot not in written] if batch is not None else []
        return l1.abort(client_uid, left) if left else 0

    def forget(self, client_uid: int) -> None:
        """The client is gone or registers anew; its slots are settled elsewhere."""
        self._batches.pop(client_uid, None)
