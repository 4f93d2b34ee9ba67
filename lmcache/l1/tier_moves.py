"""What L2 needs of L1: objects to be written elsewhere, and objects that arrive from elsewhere.

Works on L1's tables, under the manager's mutex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.read_locks import ReadLocks
from lmcache.l1.state import L1State
from lmcache.l1.values import Place
from lmcache.l1.writes import SlotWrites
from lmcache.memory.records import ready_word


@dataclass(frozen=True, slots=True)
class HeldObject:
    """What a READY slot holds, and where it lies in the pool. `is_lossy`: the bytes only resemble those computed."""

    key: ObjectKey
    offset: int
    length: int
    is_lossy: bool = False


class TierMoves:
    def __init__(self, state: L1State, locks: ReadLocks, writes: SlotWrites) -> None:
        self._state = state
        self._locks = locks
        self._writes = writes

    def describe(self, place: Place) -> HeldObject | None:
        """The object of a place, if it is still there. Takes no lock: whoever reads it must check the place after."""
        state = self._state
        if not state.has_word(place.slot, place.slot_word):
            return None
        record = state.slots.records.read(place.slot)
        name = state.namespace_of(record).key
        key = ObjectKey(record.digest, name.model_name, record.kv_rank, record.group_id, name.cache_salt)
        return HeldObject(key, record.offset, record.length, state.slots.records.is_lossy(place.slot))

    def lock_key(self, key: NamespaceKey, rank_group: RankGroup, digest: bytes, retain: bool) -> Place | None:
        """Lock the object of a key, if it is there. With `retain`, it is not temporary any more."""
        found = self.lock_keys(key, rank_group, (digest,), retain)
        return found[0][0] if found else None

    def lock_keys(
        self, key: NamespaceKey, rank_group: RankGroup, digests: Sequence[bytes], retain: bool
    ) -> list[tuple[Place, int]]:
        """The same for the leading ones of these that are there, each with its offset in the pool."""
        namespace = self._state.namespaces.get(key)
        ready = namespace.ready.get(rank_group, {}) if namespace is not None else {}
        records, found = self._state.slots.records, []
        for digest in digests:
            slot = ready.get(digest)
            if slot is None:
                break
            self._locks.lock_one(slot)
            if retain and self._state.keeps_loaded:
                self._state.temporary.discard(slot)
            offset, length = records.extent(slot)
            found.append((Place(slot, records.slot_word(slot), length), offset))
        return found

    def commit_loaded(
        self, owner_uid: int, place: Place, lock: bool, is_temporary: bool, is_lossy: bool
    ) -> Place | None:
        """An object that was loaded becomes findable, with a mark if it is lossy. A temporary one is locked, and goes
        with its last lock; where L1 keeps nothing, each one is."""
        state = self._state
        is_temporary = is_temporary or not state.keeps_loaded
        if not lock and not state.keeps_loaded:
            self._writes.abort(owner_uid, place)
            return None
        if not self._writes.commit(owner_uid, place, is_lossy):
            return None
        state.track((place.slot,))
        if lock:
            self._locks.lock_one(place.slot)
            if is_temporary:
                state.temporary.add(place.slot)
        return Place(place.slot, ready_word(place.slot_word), state.slots.records.extent(place.slot)[1])

    def remove(self, places: Sequence[Place]) -> int:
        """Remove objects that nobody has locked; returns how many."""
        state, num_removed = self._state, 0
        for place in places:
            if state.has_word(place.slot, place.slot_word) and place.slot not in state.lock_counts:
                state.remove_ready(place.slot, state.slots.records.read(place.slot))
                num_removed += 1
        return num_removed
