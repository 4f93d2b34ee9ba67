"""Slots between reserve and commit. Works on L1's tables, under the manager's mutex.

Who may touch a slot's bytes: its owner from reserve to commit or abort. A slot whose owner
is late, or whose state became doubtful, is quarantined: hidden, and freed only by its
owner's word or with proof of the owner's death.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lmcache.errors import IntegrityError
from lmcache.l1.evictor import Evictor
from lmcache.l1.namespace import Namespace, NamespaceKey, RankGroup
from lmcache.l1.state import L1State
from lmcache.l1.values import Place, ReserveResult
from lmcache.memory.records import SlotRecord, SlotState, ready_word, state_of
from lmcache.protocol.messages import ReserveStatus
from lmcache.telemetry.steps import StepObserver


class SlotWrites:
    def __init__(
        self,
        state: L1State,
        evictor: Evictor,
        write_ttl_s: float,
        clock: Callable[[], float],
        steps: StepObserver,
    ) -> None:
        self._state = state
        self._evictor = evictor
        self._write_ttl_s = write_ttl_s
        self._clock = clock
        self._steps = steps

    def reserve_all(
        self, key: NamespaceKey, rank_group: RankGroup, owner_uid: int, digests: Sequence[bytes], length: int
    ) -> ReserveResult:
        """A slot for each digest that nobody holds. Evicts exactly what is needed."""
        result = ReserveResult()
        num_evicted_before = self._evictor.num_evicted
        namespace = self._state.acquire_namespace(key)
        namespace.num_objects += 1  # keeps it alive while eviction empties it
        try:
            for digest in digests:
                status, slot = self._reserve(namespace, rank_group, owner_uid, digest, length)
                result.statuses.append(status)
                if status is ReserveStatus.RESERVED:
                    result.slots.append(slot)
        finally:
            namespace.num_objects -= 1
            self._state.release_if_empty(namespace)
        result.num_evicted = self._evictor.num_evicted - num_evicted_before
        return result

    def _reserve(
        self, namespace: Namespace, rank_group: RankGroup, owner_uid: int, digest: bytes, length: int
    ) -> tuple[ReserveStatus, int]:
        """The slot for a digest, or why there is none (slot -1)."""
        state = self._state
        if digest in namespace.table(rank_group):
            return ReserveStatus.EXISTS, -1
        if (rank_group, digest) in namespace.writing:
            return ReserveStatus.BUSY, -1
        if state.is_frozen or not self._evictor.make_room(length, namespace.key.cache_salt):
            return ReserveStatus.NO_ROOM, -1
        offset = state.slots.allocator.allocate(length)
        if offset is None:
            raise IntegrityError("room was made, but the allocator finds none")
        record = SlotRecord(
            digest, offset, length, namespace.model_id, namespace.salt_id,
            rank_group[0], rank_group[1], namespace.root_id, owner_uid,
        )  # fmt: skip
        slot = state.slots.reserve(record)
        self._steps.reached("l1.reserved")
        state.add_writing(slot, length, rank_group, digest, namespace)
        state.write_deadlines[slot] = self._clock() + self._write_ttl_s
        return ReserveStatus.RESERVED, slot

    def commit(self, owner_uid: int, place: Place, is_lossy: bool = False) -> bool:
        """Make a written slot findable, with a mark if it is lossy. One that was quarantined, or comes while nothing
        may come, is freed: its owner is done with it."""
        if self._state.is_frozen or not self._is_writing(owner_uid, place):
            self.abort(owner_uid, place)
            return False
        state = self._state
        record = state.slots.records.read(place.slot)
        namespace = state.namespace_of(record)
        state.end_writing(place.slot, record, namespace)
        if is_lossy:
            state.slots.records.mark_lossy(place.slot)
        self._steps.reached("l1.commit")
        state.slots.set_state(place.slot, SlotState.WRITING, SlotState.READY)
        self._steps.reached("l1.committed")
        state.add_ready(place.slot, record, namespace)
        return True

    def abort(self, owner_uid: int, place: Place) -> bool:
        """The owner is done with a slot and did not fill it."""
        if self._is_writing(owner_uid, place):
            self._state.quarantine_writing(place.slot)
        return self._free_quarantined(owner_uid, place)

    def abort_owner(self, owner_uid: int, keep: dict[int, int]) -> int:
        """Free all slots of an owner but those kept (slot: slot word); returns how many."""
        slots, num_freed = self._state.slots, 0
        for slot in [slot for slot in self.pending() if slots.records.owner_uid(slot) == owner_uid]:
            word = slots.records.slot_word(slot)
            if ready_word(word) == ready_word(keep.get(slot, -1)):
                continue
            if state_of(word) is SlotState.WRITING:
                self._state.quarantine_writing(slot)
            slots.free(slot, SlotState.QUARANTINED)
            num_freed += 1
        return num_freed

    def quarantine(self, slots: Iterable[int]) -> int:
        """Hide writes under way; returns how many."""
        hidden = list(slots)
        for slot in hidden:
            self._state.quarantine_writing(slot)
        return len(hidden)

    def expired(self) -> list[int]:
        """Slots whose writing outlived its time."""
        now_s = self._clock()
        return [slot for slot, deadline_s in self._state.write_deadlines.items() if deadline_s <= now_s]

    def under_root(self, root: bytes, owner_uids: set[int]) -> list[int]:
        """Slots that these clients are writing under a root."""
        records = self._state.slots.records
        return [
            slot
            for namespace in self._state.namespaces.values()
            if namespace.key.root == root
            for slot in namespace.writing.values()
            if records.owner_uid(slot) in owner_uids
        ]

    def pending(self) -> list[int]:
        """Slots that are neither free nor ready."""
        return [*self._state.write_deadlines, *self._state.slots.quarantined]

    def _is_writing(self, owner_uid: int, place: Place) -> bool:
        return (
            self._state.has_word(place.slot, place.slot_word)
            and state_of(place.slot_word) is SlotState.WRITING
            and self._state.slots.records.owner_uid(place.slot) == owner_uid
        )

    def _free_quarantined(self, owner_uid: int, place: Place) -> bool:
        slots = self._state.slots
        if not 0 <= place.slot < slots.records.num_records:
            return False
        word = slots.records.slot_word(place.slot)
        is_its_own = (
            ready_word(word) == ready_word(place.slot_word) and slots.records.owner_uid(place.slot) == owner_uid
        )
        if state_of(word) is not SlotState.QUARANTINED or not is_its_own:
            return False
        slots.free(place.slot, SlotState.QUARANTINED)
        return True
