"""The management module: registration, heartbeats, liveness, clear, reset, expiry.

Liveness has two sides. Silence ends a registration and its read locks. Only proof of death
(see memory/client_lock.py) frees what a client was writing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lmcache.core.keys import check_cache_salt
from lmcache.core.layout import KVLayout
from lmcache.engine.metrics import EngineMetrics
from lmcache.engine.pool import SERVER_UID, Pool
from lmcache.engine.prefetches import PrefetchModule
from lmcache.engine.registry import Client, ClientKind, ClientRegistry, Engine
from lmcache.engine.sessions import SessionTable
from lmcache.engine.store import StoreModule
from lmcache.errors import RequestRefusedError
from lmcache.l1.manager import L1Manager
from lmcache.l1.values import Place
from lmcache.memory.client_lock import is_client_dead, known_client_uids, remove_client_file
from lmcache.protocol.blobs import split_slots
from lmcache.protocol.messages import (
    ErrorCode,
    Ping,
    Pong,
    Registered,
    RegisterScheduler,
    RegisterWorker,
    Transferred,
)

logger = logging.getLogger(__name__)

_EVENTS_MAX = 65536
_REMOVED_DIGESTS_PER_PONG = 4096
_DELETE_BATCH = 2000
_BLOCK_BYTES_MAX = 1 << 40
_DEVICE = "cpu"  # where the engines that can register keep their KV


@dataclass(frozen=True, slots=True)
class LivenessConfig:
    """Silence after which a registration ends: once it has pinged, and before. 0 switches it off."""

    reap_timeout_s: float = 120.0
    registration_grace_s: float = 3600.0


class ManagementModule:
    """Called under the engine's mutex."""

    def __init__(
        self,
        registry: ClientRegistry,
        sessions: SessionTable,
        stores: StoreModule,
        prefetches: PrefetchModule,
        metrics: EngineMetrics,
        liveness: LivenessConfig,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._stores = stores
        self._prefetches = prefetches
        self._metrics = metrics
        self._liveness = liveness
        self._clock = clock
        self._attempts: dict[int, int] = {}
        self._events: deque[tuple[int, bytes, bytes]] = deque(maxlen=_EVENTS_MAX)
        self._event_number = 0
        self._dying_roots: list[bytes] = []

    # Registration

    def register_worker(
        self, pool: Pool, uid: int, peer: bytes, message: RegisterWorker, chunk_size: int
    ) -> Registered:
        self._check_access(pool, message.nonce)
        layout = _parse_layout(message.layout)
        client, engine = self._registry.add_worker(
            uid, peer, message.engine_id, message.model_name, message.world_size, message.rank, layout
        )
        if message.attempt > self._attempts.get(uid, 0):
            self._attempts[uid] = message.attempt
            writing = [Place(slot, word) for slot, word in split_slots(message.writing)]
            self._stores.forget(uid)
            pool.l1.abort_owner(uid, writing)
        client.attempt = self._attempts[uid]
        logger.info("worker %d registered: model %s, rank %d of %d", client.instance_id, client.model_name,
                    message.rank, message.world_size)  # fmt: skip
        return self._registered(client, engine, chunk_size)

    def register_scheduler(
        self, pool: Pool, uid: int, peer: bytes, message: RegisterScheduler, chunk_size: int
    ) -> Registered:
        self._check_access(pool, message.nonce)
        client, engine = self._registry.add_scheduler(
            uid, peer, message.engine_id, message.model_name, message.world_size,
            message.model_facts, message.epoch, message.wants_events,
        )  # fmt: skip
        return self._registered(client, engine, chunk_size)

    def _registered(self, client: Client, engine: Engine, chunk_size: int) -> Registered:
        layouts = [engine.workers[rank].layout for rank in engine.source_ranks()]
        sizes = [layout.chunk_bytes(chunk_size) for layout in layouts if layout is not None]
        return Registered(client.instance_id, engine.root, engine.missing_ranks, sizes)

    def _check_access(self, pool: Pool, nonce: bytes) -> None:
        if nonce != pool.files.nonce:
            raise RequestRefusedError(
                ErrorCode.FORBIDDEN,
                f"this client did not prove that it can read {pool.files.folder}: it must run on this host, share "
                f"{pool.files.folder.parent} with the server (docker: --ipc=host or one volume) and have the right to "
                f"read it (the same user, or --l1-group)",
            )

    def unregister(self, pool: Pool, uid: int) -> None:
        """The same for a goodbye and for a client given up: its locks and sessions end here."""
        self._prefetches.release_client(uid)
        self._sessions.end_client(pool.l1, uid)
        self._registry.remove(uid)

    # Heartbeats and events

    def ping(self, client: Client | None, message: Ping) -> Pong:
        """Always true; refreshes the client. Brings the digests that left L1, if it asked for events."""
        if client is None:
            return Pong(True)
        client.has_pinged = True
        client.last_seen_s = self._clock()
        if not client.wants_events:
            return Pong(True)
        root = self._registry.engine_of(client).root
        found: list[bytes] = []
        cursor = message.event_cursor
        for number, event_root, digest in self._events:
            if number > message.event_cursor and len(found) < _REMOVED_DIGESTS_PER_PONG:
                cursor = number
                if event_root == root:
                    found.append(digest)
        return Pong(True, cursor if found or self._events else self._event_number, b"".join(found))

    def note_removed(self, l1: L1Manager) -> None:
        """Move what came to and left L1 into the metrics, what left into the event log."""
        is_followed = any(client.wants_events for client in self._registry.clients.values())
        lifecycle = self._metrics.lifecycle
        for digest, cache_salt in l1.take_added():
            lifecycle.stored(digest, cache_salt)
        for removed in l1.take_removed():
            self._metrics.l1_evicted.add(1, removed.cache_salt)
            lifecycle.removed(removed.digest, removed.cache_salt)
            if is_followed:
                self._event_number += 1
                self._events.append((self._event_number, removed.root, removed.digest))

    def count_transfer(self, client: Client, done: Transferred) -> None:
        """What a worker copied. Refused from anybody else, and where the numbers make no sense."""
        if client.kind is not ClientKind.WORKER or not (
            done.duration_s >= 0 and done.num_bytes >= 0 <= done.num_chunks
        ):
            raise RequestRefusedError(ErrorCode.INVALID, "only a worker transfers, and no negative amounts")
        salt, metrics = check_cache_salt(done.cache_salt), self._metrics
        if not done.is_ok:
            metrics.l1_read_failure.add(done.num_chunks, "l1_retrieve", "not_found", client.model_name)
            return
        if done.is_load:
            metrics.chunks_loaded.add(done.num_chunks, str(client.instance_id), client.model_name, salt)
        histogram = metrics.l0_l1_load_throughput if done.is_load else metrics.l0_l1_store_throughput
        if done.duration_s > 0:
            speed = done.num_bytes / done.duration_s / 1e9
            histogram.observe(speed, client.engine_id, _DEVICE, client.model_name)

    # Reset and clear

    def reset_engine(self, pool: Pool, client: Client, epoch: bytes, chunk_size: int) -> Registered:
        """A fresh root; what its workers write now is hidden; the old objects go behind, in batches."""
        if client.kind is not ClientKind.SCHEDULER or not epoch:
            raise RequestRefusedError(ErrorCode.FORBIDDEN, "only a scheduler resets its engine, with an epoch")
        engine = self._registry.engine_of(client)
        workers = {worker.uid for worker in engine.workers.values()}
        old_root = self._registry.set_epoch(engine, epoch)
        if old_root and old_root != engine.root:
            pool.l1.quarantine_writes(old_root, workers)
            if not self._registry.is_root_in_use(old_root):
                self._dying_roots.append(old_root)
        return self._registered(client, engine, chunk_size)

    def delete_dying_roots(self, pool: Pool) -> int:
        """One batch of objects of engines that were reset; called from a loop."""
        num_deleted = 0
        for root in list(self._dying_roots):
            if num_deleted >= _DELETE_BATCH:
                break
            is_in_use = self._registry.is_root_in_use(root)
            if not is_in_use:
                num_deleted += pool.l1.delete_root(root, _DELETE_BATCH)
            if is_in_use or not pool.l1.has_root(root):
                self._dying_roots.remove(root)
        return num_deleted

    def clear_slice(self, l1: L1Manager, first_slot: int, force: bool) -> tuple[int, int]:
        """See `L1Manager.clear_slice`."""
        num_removed, next_slot = l1.clear_slice(first_slot, force)
        self.note_removed(l1)
        return num_removed, next_slot

    # Liveness

    def reap(self, pool: Pool) -> dict[str, object]:
        """End what silent and dead clients hold; one cycle of the reaper."""
        dead = [uid for uid in self._known_uids(pool) if is_client_dead(pool.files.folder, uid)]
        for uid in dead:
            self._bury(pool, uid)
        silent = [client for client in list(self._registry.clients.values()) if self._is_silent(client)]
        for client in silent:
            logger.warning(
                "%s %d (%s) fell silent and is unregistered", client.kind, client.instance_id, client.model_name
            )
            self.unregister(pool, client.uid)
            self._metrics.workers_reaped.add(1, "silent")
        return {"dead": len(dead), "silent": len(silent)}

    def _known_uids(self, pool: Pool) -> set[int]:
        known = set(self._registry.clients) | pool.l1.pending_owners() | set(known_client_uids(pool.files.folder))
        return known - {SERVER_UID}

    def _bury(self, pool: Pool, uid: int) -> None:
        num_freed = pool.l1.abort_owner(uid)
        self._stores.forget(uid)
        self._attempts.pop(uid, None)
        if uid in self._registry.clients:
            client = self._registry.clients[uid]
            logger.warning("%s %d (%s) died; %d unfinished writes freed", client.kind, client.instance_id,
                           client.model_name, num_freed)  # fmt: skip
            self.unregister(pool, uid)
            self._metrics.workers_reaped.add(1, "dead")
        remove_client_file(pool.files.folder, uid)

    def _is_silent(self, client: Client) -> bool:
        if not self._liveness.reap_timeout_s:
            return False
        limit_s = self._liveness.reap_timeout_s if client.has_pinged else self._liveness.registration_grace_s
        return self._clock() - client.last_seen_s > limit_s

    def report(self) -> dict[str, object]:
        if not self._registry.clients:
            return {}
        return {
            "worker_liveness": {
                "enabled": self._liveness.reap_timeout_s > 0,
                "reap_timeout_seconds": self._liveness.reap_timeout_s,
                "registration_grace_seconds": self._liveness.registration_grace_s,
                "tracked_instances": len(self._registry.clients),
            }
        }


def _parse_layout(blob: bytes) -> KVLayout:
    try:
        layout = msgspec.json.decode(blob, type=KVLayout)
    except msgspec.MsgspecError as error:
        raise RequestRefusedError(ErrorCode.INVALID, f"the KV layout cannot be read: {error}") from error
    if layout.block_size < 1 or not layout.num_layers or any(group.page_bytes < 1 for group in layout.groups):
        raise RequestRefusedError(ErrorCode.INVALID, "the KV layout has blocks without tokens or pages without bytes")
    if layout.block_bytes > _BLOCK_BYTES_MAX:
        raise RequestRefusedError(ErrorCode.INVALID, f"a block has at most {_BLOCK_BYTES_MAX} bytes over all layers")
    return layout
