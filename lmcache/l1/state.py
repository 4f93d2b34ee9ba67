"""The tables of L1 and the few moves that keep them in step. No lock of its own: see manager.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lmcache.errors import IntegrityError
from lmcache.eviction.base import EvictionPolicy
from lmcache.l1.namespace import Namespace, NamespaceKey, RankGroup
from lmcache.l1.slots import SlotTable
from lmcache.memory.names import NameKind, NamesTable
from lmcache.memory.records import SlotRecord, SlotState
from lmcache.quota.tenant_bytes import TenantBytes

_REMOVED_LOG_MAX = 65536


@dataclass(frozen=True, slots=True)
class RemovedObject:
    """An object that is no longer in L1, as an event for whoever follows."""

    root: bytes
    digest: bytes
    cache_salt: str


class L1State:
    """Objects by key, by slot and by tenant. One owner."""

    def __init__(self, slots: SlotTable, names: NamesTable, policy: EvictionPolicy) -> None:
        self.slots = slots
        self.names = names
        self.policy = policy
        self.namespaces: dict[NamespaceKey, Namespace] = {}
        self._by_ids: dict[tuple[int, int, int], Namespace] = {}
        self.lock_counts: dict[int, int] = {}
        # Locked slots whose object goes with its last lock.
        self.temporary: set[int] = set()
        self.write_deadlines: dict[int, float] = {}
        self.usage_bytes = TenantBytes()
        self.writing_bytes = TenantBytes()
        # Tenants whose usage grew since the evictor looked, where the policy tells tenants apart.
        self.grown: dict[str, None] = {}
        self.removed: deque[RemovedObject] = deque(maxlen=_REMOVED_LOG_MAX)
        # Digest and tenant of what came, for whoever follows.
        self.added: deque[tuple[bytes, str]] = deque(maxlen=_REMOVED_LOG_MAX)
        # While frozen nothing comes, nothing is evicted, and no order changes. What was unlocked meanwhile waits
        # for the end of it to be released.
        self.is_frozen = False
        self.unlocked_frozen: dict[int, None] = {}
        # False: what is loaded goes with its last lock.
        self.keeps_loaded = True
        self._tick = 1

    # Namespaces

    def acquire_namespace(self, key: NamespaceKey) -> Namespace:
        """The namespace of a key, made if there is none; names are durable when this returns."""
        namespace = self.namespaces.get(key)
        if namespace is None:
            namespace = Namespace(
                key,
                self.names.acquire(NameKind.MODEL, key.model_name.encode()),
                self.names.acquire(NameKind.ROOT, key.root),
                self.names.acquire(NameKind.SALT, key.cache_salt.encode()),
            )
            self.add_namespace(namespace)
        return namespace

    def add_namespace(self, namespace: Namespace) -> None:
        self.namespaces[namespace.key] = namespace
        self._by_ids[namespace.model_id, namespace.root_id, namespace.salt_id] = namespace

    def release_if_empty(self, namespace: Namespace) -> None:
        if namespace.num_objects or self.namespaces.get(namespace.key) is not namespace:
            return
        del self.namespaces[namespace.key]
        del self._by_ids[namespace.model_id, namespace.root_id, namespace.salt_id]
        for name_id in (namespace.model_id, namespace.root_id, namespace.salt_id):
            self.names.release(name_id)

    def namespace_of(self, record: SlotRecord) -> Namespace:
        return self._by_ids[record.model_id, record.root_id, record.salt_id]

    # Objects

    def has_word(self, slot: int, slot_word: int) -> bool:
        """Whether there is such a slot and it is in exactly this state and generation."""
        records = self.slots.records
        return 0 <= slot < records.num_records and records.slot_word(slot) == slot_word

    def add_ready(self, slot: int, record: SlotRecord, namespace: Namespace) -> None:
        """A slot just committed becomes findable; the caller tracks it."""
        namespace.table((record.kv_rank, record.group_id))[record.digest] = slot
        salt = namespace.key.cache_salt
        self.usage_bytes.count(salt, record.length)
        self.added.append((record.digest, salt))
        if self.policy.is_per_tenant:
            self.grown[salt] = None

    def add_writing(self, slot: int, length: int, rank_group: RankGroup, digest: bytes, namespace: Namespace) -> None:
        """A slot just reserved: its key is taken until it is committed or hidden."""
        namespace.writing[rank_group, digest] = slot
        namespace.num_objects += 1
        salt = namespace.key.cache_salt
        self.writing_bytes.count(salt, length)

    def end_writing(self, slot: int, record: SlotRecord, namespace: Namespace) -> None:
        """The write is over, one way or the other; the slot counts as an object still."""
        namespace.writing.pop(((record.kv_rank, record.group_id), record.digest))
        self.write_deadlines.pop(slot)
        self.writing_bytes.count(namespace.key.cache_salt, -record.length)

    def remove_ready(self, slot: int, record: SlotRecord, is_evicted: bool = False) -> None:
        """Take an object out and free its slot, locked or not; readers see the slot word change."""
        namespace = self.namespace_of(record)
        del namespace.table((record.kv_rank, record.group_id))[record.digest]
        self.policy.remove(slot, is_evicted)
        self.lock_counts.pop(slot, None)
        self.temporary.discard(slot)
        salt = namespace.key.cache_salt
        self.usage_bytes.count(salt, -record.length)
        self.slots.free(slot, SlotState.READY)
        self.removed.append(RemovedObject(namespace.key.root, record.digest, salt))
        namespace.num_objects -= 1
        self.release_if_empty(namespace)

    def quarantine_writing(self, slot: int) -> None:
        """Hide a slot that its owner may still be writing; its key is free for another writer."""
        record = self.slots.records.read(slot)
        namespace = self.namespace_of(record)
        self.end_writing(slot, record, namespace)
        self.slots.set_state(slot, SlotState.WRITING, SlotState.QUARANTINED)
        namespace.num_objects -= 1
        self.release_if_empty(namespace)

    def track(self, slots: Iterable[int]) -> None:
        """Objects just committed stand in the policy's order, the last of `slots` most recent."""
        stored = list(slots)
        records = self.slots.records
        for slot in stored:
            self.policy.add(slot, records.key_hash(slot), self.namespace_of(records.read(slot)).key.cache_salt)
        self._note_use(stored)

    def touch(self, slots: Iterable[int]) -> None:
        """Use of objects, the last of `slots` most recent. Locked ones are not evictable and wait."""
        if self.is_frozen:
            return
        used = list(slots)
        self.policy.touch(used)
        self._note_use(used)

    def refresh(self, slots: Iterable[int]) -> None:
        """The same for a use that is counted already, or will be."""
        if self.is_frozen:
            return
        used = list(slots)
        self.policy.refresh(used)
        self._note_use(used)

    def _note_use(self, slots: list[int]) -> None:
        if slots:
            self.slots.records.set_recency(slots, self._tick)
            self._tick += len(slots)

    def start_clock(self, tick: int) -> None:
        self._tick = tick + 1

    def ready_slots(self) -> Iterator[tuple[RankGroup, bytes, int]]:
        for namespace in self.namespaces.values():
            for rank_group, table in namespace.ready.items():
                for digest, slot in table.items():
                    yield rank_group, digest, slot

    def check_integrity(self) -> None:
        """Raise IntegrityError unless tables, policy, usage and slots agree."""
        self.slots.check_integrity()
        ready = [slot for _, _, slot in self.ready_slots()]
        if len(ready) != self.slots.counts[SlotState.READY] or len(set(ready)) != len(ready):
            raise IntegrityError("the tables do not list every ready slot once")
        writing = sum(len(namespace.writing) for namespace in self.namespaces.values())
        if not writing == self.slots.counts[SlotState.WRITING] == len(self.write_deadlines):
            raise IntegrityError("slots being written do not add up")
        if not set(self.lock_counts) <= set(ready) or len(self.policy) != len(ready):
            raise IntegrityError("locked, tracked and ready slots do not add up")
        if not self.temporary <= set(self.lock_counts):
            raise IntegrityError("a temporary object has no lock")
        usage, writing_bytes = TenantBytes(), TenantBytes()
        for namespace in self.namespaces.values():
            salt = namespace.key.cache_salt
            objects = sum(len(table) for table in namespace.ready.values()) + len(namespace.writing)
            if objects != namespace.num_objects or not objects:
                raise IntegrityError(f"namespace {namespace.key} counts {namespace.num_objects}, holds {objects}")
            for table in namespace.ready.values():
                for digest, slot in table.items():
                    if self.slots.records.digest(slot) != digest:
                        raise IntegrityError(f"slot {slot} holds another digest than its table says")
                    usage.count(salt, self.slots.records.extent(slot)[1])
            for slot in namespace.writing.values():
                writing_bytes.count(salt, self.slots.records.extent(slot)[1])
        if usage != self.usage_bytes or writing_bytes != self.writing_bytes:
            raise IntegrityError("bytes per tenant do not add up")
