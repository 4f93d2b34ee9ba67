"""Who is registered: clients, the engines they belong to, and the root of each engine.

Only the loop's thread changes it; readers in other threads see whole entries.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from lmcache.core.hashing import ChunkHashAlgorithm
from lmcache.core.identity import make_root, short_digest
from lmcache.core.keys import check_model_name, make_kv_rank
from lmcache.core.layout import KVLayout, check_chunk_size
from lmcache.errors import DeclinedError
from lmcache.l1.namespace import RankGroup


class ClientKind(StrEnum):
    WORKER = "worker"
    SCHEDULER = "scheduler"


@dataclass(slots=True)
class Client:
    """One registered process role. `peer` addresses its control connection."""

    uid: int
    kind: ClientKind
    engine_id: str
    model_name: str
    peer: bytes
    instance_id: int
    last_seen_s: float
    rank: int = 0
    layout: KVLayout | None = None
    layout_text: str = ""
    has_pinged: bool = False
    attempt: int = 1
    wants_events: bool = False


@dataclass(slots=True)
class Engine:
    """One vLLM engine: its scheduler and one worker per rank. `fact_digests`: of each of its facts, for operators."""

    engine_id: str
    model_name: str
    world_size: int
    workers: dict[int, Client] = field(default_factory=dict)
    scheduler_uid: int | None = None
    model_facts: dict[str, object] | None = None
    fact_digests: dict[str, str] = field(default_factory=dict)
    epoch: bytes = b""
    root: bytes = b""

    @property
    def missing_ranks(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank not in self.workers]

    def source_ranks(self) -> list[int]:
        """Ranks whose objects exist: all, or one per set of ranks that hold equal bytes (MLA)."""
        layouts = {rank: worker.layout for rank, worker in self.workers.items() if worker.layout is not None}
        ranks: list[int] = []
        for rank in sorted(layouts):
            layout = layouts[rank]
            if not layout.is_mla or not any(layouts[other].identity() == layout.identity() for other in ranks):
                ranks.append(rank)
        return ranks

    def rank_groups(self) -> list[RankGroup]:
        """Keys of the tables a hit must be in, in the order of a lookup's columns."""
        return [(self.kv_rank(rank), 0) for rank in self.source_ranks()]

    def kv_rank(self, rank: int) -> int:
        return make_kv_rank(self.world_size, rank, self.world_size, rank)


class ClientRegistry:
    """Instance ids are the smallest free numbers; a client that registers again keeps its own."""

    def __init__(self, algorithm: ChunkHashAlgorithm, chunk_size: int, clock: Callable[[], float]) -> None:
        self._algorithm = algorithm
        self._chunk_size = chunk_size
        self._clock = clock
        self.clients: dict[int, Client] = {}
        self.engines: dict[str, Engine] = {}

    def add_worker(
        self, uid: int, peer: bytes, engine_id: str, model_name: str, world_size: int, rank: int, layout: KVLayout
    ) -> tuple[Client, Engine]:
        """Raises DeclinedError or KeyFormatError for what cannot be served."""
        check_model_name(model_name)
        check_chunk_size(self._chunk_size, layout.block_size)
        if not 0 <= rank < world_size:
            raise DeclinedError(f"rank {rank} is outside a world of {world_size}")
        make_kv_rank(world_size, rank, world_size, rank)
        client = self._client(uid, ClientKind.WORKER, engine_id, model_name, rank, peer)
        engine = self._engine(engine_id, model_name, world_size)
        client.layout, client.layout_text = layout, layout.describe()
        engine.workers[rank] = client
        self._update_root(engine)
        return client, engine

    def add_scheduler(
        self,
        uid: int,
        peer: bytes,
        engine_id: str,
        model_name: str,
        world_size: int,
        model_facts: bytes,
        epoch: bytes,
        wants_events: bool,
    ) -> tuple[Client, Engine]:
        check_model_name(model_name)
        make_kv_rank(world_size, 0, world_size, 0)
        facts = _parse_facts(model_facts)
        client = self._client(uid, ClientKind.SCHEDULER, engine_id, model_name, 0, peer)
        engine = self._engine(engine_id, model_name, world_size)
        client.wants_events = wants_events
        engine.scheduler_uid = uid
        engine.model_facts = facts
        engine.fact_digests = {name: short_digest(fact) for name, fact in sorted(facts.items())}
        engine.epoch = epoch
        self._update_root(engine)
        return client, engine

    def set_epoch(self, engine: Engine, epoch: bytes) -> bytes:
        """Give a reset engine a new root; returns the old one."""
        old_root = engine.root
        engine.epoch = epoch
        self._update_root(engine)
        return old_root

    def remove(self, uid: int) -> Client | None:
        client = self.clients.pop(uid, None)
        if client is None:
            return None
        engine = self.engines.get(client.engine_id)
        if engine is not None:
            if engine.workers.get(client.rank) is client:
                del engine.workers[client.rank]
            if engine.scheduler_uid == uid:
                engine.scheduler_uid = None
            self._update_root(engine)
            if not any(other.engine_id == client.engine_id for other in self.clients.values()):
                del self.engines[client.engine_id]
        return client

    def workers(self) -> list[Client]:
        """Registered workers by instance id."""
        found = [client for client in list(self.clients.values()) if client.kind is ClientKind.WORKER]
        return sorted(found, key=lambda client: client.instance_id)

    def engine_of(self, client: Client) -> Engine:
        return self.engines[client.engine_id]

    def is_root_in_use(self, root: bytes) -> bool:
        return any(engine.root == root for engine in self.engines.values())

    def published_roots(self, model_name: str, world_size: int) -> list[bytes]:
        """Roots of registered engines, for calls that name tokens only."""
        found = {
            engine.root
            for engine in list(self.engines.values())
            if engine.root and (engine.model_name, engine.world_size) == (model_name, world_size)
        }
        return sorted(found)

    def _engine(self, engine_id: str, model_name: str, world_size: int) -> Engine:
        engine = self.engines.get(engine_id)
        if engine is None or (engine.model_name, engine.world_size) != (model_name, world_size):
            engine = self.engines[engine_id] = Engine(engine_id, model_name, world_size)
        return engine

    def _client(self, uid: int, kind: ClientKind, engine_id: str, model_name: str, rank: int, peer: bytes) -> Client:
        """The entry of a client. One that comes back in another role or place begins anew."""
        old = self.clients.get(uid)
        place = (kind, engine_id, model_name, rank)
        if old is not None and (old.kind, old.engine_id, old.model_name, old.rank) == place:
            old.peer, old.last_seen_s = peer, self._clock()
            return old
        if old is not None:
            self.remove(uid)
        instance_id = self._free_instance_id(kind)
        client = Client(uid, kind, engine_id, model_name, peer, instance_id, self._clock(), rank)
        self.clients[uid] = client
        return client

    def _free_instance_id(self, kind: ClientKind) -> int:
        """Workers count from 0; schedulers are no KV contexts and get -1."""
        if kind is ClientKind.SCHEDULER:
            return -1
        taken = {client.instance_id for client in self.clients.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _update_root(self, engine: Engine) -> None:
        if engine.missing_ranks or engine.model_facts is None:
            engine.root = b""
            return
        layouts = [layout for rank in range(engine.world_size) if (layout := engine.workers[rank].layout) is not None]
        engine.root = make_root(self._algorithm, engine.model_facts, layouts, self._chunk_size, engine.epoch)


def _parse_facts(model_facts: bytes) -> dict[str, object]:
    try:
        facts = json.loads(model_facts, parse_constant=_refuse_constant)
    except ValueError as error:
        raise DeclinedError(f"model facts must be JSON: {error}") from error
    if not isinstance(facts, dict) or not facts:
        raise DeclinedError("model facts must be a JSON object that is not empty")
    return facts


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} has no one spelling")
