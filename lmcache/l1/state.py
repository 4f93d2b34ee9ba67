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
        self.write_deadlines: dict[int, float] = {}
        self.usage_bytes: dict[str, int] = {}
        self.removed: deque[RemovedObject] = deque(maxlen=_REMOVED_LOG_MAX)
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
        """A slot just committed becomes findable; the caller touches it."""
        namespace.table((record.kv_rank, record.group_id))[record.digest] = slot
        salt = namespace.key.cache_salt
        self.usage_bytes[salt] = self.usage_bytes.get(salt, 0) + record.length

    def remove_ready(self, slot: int, record: SlotRecord) -> None:
        """Take an object out and free its slot, locked or not; readers see the slot word change."""
        namespace = self.namespace_of(record)
        del namespace.table((record.kv_rank, record.group_id))[record.digest]
        self.policy.remove(slot)
        self.lock_counts.pop(slot, None)
        salt = namespace.key.cache_salt
        left = self.usage_bytes[salt] - record.length
        if left:
            self.usage_bytes[salt] = left
        else:
            del self.usage_bytes[salt]
        self.slots.free(slot, SlotState.READY)
        self.removed.append(RemovedObject(namespace.key.root, record.digest, salt))
        namespace.num_objects -= 1
        self.release_if_empty(namespace)

    def quarantine_writing(self, slot: int) -> None:
        """Hide a slot that its owner may still be writing; its key is free for another writer."""
        record = self.slots.records.read(slot)
        namespace = self.namespace_of(record)
        namespace.writing.pop(((record.kv_rank, record.group_id), record.digest), None)
        self.write_deadlines.pop(slot, None)
        self.slots.set_state(slot, SlotState.WRITING, SlotState.QUARANTINED)
        namespace.num_objects -= 1
        self.release_if_empty(namespace)

    def touch(self, slots: Iterable[int]) -> None:
        """Use of objects, the last of `slots` most recent. Locked ones are not evictable and wait."""
        used = list(slots)
        if not used:
            return
        self.policy.touch(slot for slot in used if slot not in self.lock_counts)
        self.slots.records.set_recency(used, self._tick)
        self._tick += len(used)

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
        if not set(self.lock_counts) <= set(ready) or len(self.policy) != len(ready) - len(self.lock_counts):
            raise IntegrityError("locked and evictable slots do not add up")
        usage: dict[str, int] = {}
        for namespace in self.namespaces.values():
            objects = sum(len(table) for table in namespace.ready.values()) + len(namespace.writing)
            if objects != namespace.num_objects or not objects:
                raise IntegrityError(f"namespace {namespace.key} counts {namespace.num_objects}, holds {objects}")
            for table in namespace.ready.values():
                for digest, slot in table.items():
                    if self.slots.records.digest(slot) != digest:
                        raise IntegrityError(f"slot {slot} holds another digest than its table says")
                    salt = namespace.key.cache_salt
                    usage[salt] = usage.get(salt, 0) + self.slots.records.extent(slot)[1]
        if usage != self.usage_bytes:
            raise IntegrityError("bytes per tenant do not add up")
