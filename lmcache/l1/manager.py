"""The L1 manager: reserve, commit, abort, lookup, lock, evict, clear, over one pool.

One mutex guards all tables; every public call is atomic and does no I/O but for new names.
State machine of a slot: see memory/records.py. Who may touch a slot's bytes: its owner
from reserve to commit or abort, readers while it is READY, nobody else ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from lmcache.errors import IntegrityError
from lmcache.l1.namespace import Namespace, NamespaceKey, RankGroup
from lmcache.l1.recovery import RecoveryReport, recover
from lmcache.l1.state import L1State, RemovedObject
from lmcache.memory.allocator import ALIGN_BYTES
from lmcache.memory.records import SlotRecord, SlotState, ready_word, state_of
from lmcache.telemetry.steps import NO_STEPS, StepObserver


class ReserveStatus(IntEnum):
    RESERVED = 0
    EXISTS = 1  # committed already
    BUSY = 2  # another writer holds it
    NO_ROOM = 3


class Place(NamedTuple):
    """A slot and the slot word it had when it was promised; `length` in bytes where it matters."""

    slot: int
    slot_word: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class LockBudget:
    """Bytes that may still be locked; places that are held already cost nothing."""

    num_bytes: int
    is_held: Callable[[Place], bool] = lambda place: False


@dataclass(slots=True)
class ReserveResult:
    """One status per asked digest; slots of the reserved ones, in the same order."""

    statuses: bytearray = field(default_factory=bytearray)
    slots: list[int] = field(default_factory=list)
    num_evicted: int = 0


class L1Manager:
    """Thread-safe. `clock` is monotonic seconds; `steps` sees each write that a crash could follow."""

    def __init__(
        self, state: L1State, write_ttl_s: float, clock: Callable[[], float], steps: StepObserver = NO_STEPS
    ) -> None:
        self._state = state
        self._write_ttl_s = write_ttl_s
        self._clock = clock
        self._steps = steps
        self._mutex = threading.Lock()

    def recover(self) -> RecoveryReport:
        """Adopt what the records say. Only before anything else is called."""
        with self._mutex:
            return recover(self._state, ALIGN_BYTES)

    def grow(self, length: int) -> None:
        """`length` more bytes of the pool were populated and may be used."""
        with self._mutex:
            self._state.slots.allocator.grow(length)

    # Writing

    def reserve(
        self, key: NamespaceKey, rank_group: RankGroup, owner_uid: int, digests: Sequence[bytes], length: int
    ) -> ReserveResult:
        """A slot of `length` bytes for each digest that nobody holds. Evicts exactly what is needed."""
        result = ReserveResult()
        with self._mutex:
            namespace = self._state.acquire_namespace(key)
            namespace.num_objects += 1  # keeps it alive while eviction empties it
            try:
                for digest in digests:
                    result.statuses.append(self._reserve_one(namespace, rank_group, owner_uid, digest, length, result))
            finally:
                namespace.num_objects -= 1
                self._state.release_if_empty(namespace)
        return result

    def _reserve_one(
        self,
        namespace: Namespace,
        rank_group: RankGroup,
        owner_uid: int,
        digest: bytes,
        length: int,
        result: ReserveResult,
    ) -> ReserveStatus:
        state = self._state
        if digest in namespace.table(rank_group):
            return ReserveStatus.EXISTS
        if (rank_group, digest) in namespace.writing:
            return ReserveStatus.BUSY
        if not self._make_room(length, result):
            return ReserveStatus.NO_ROOM
        offset = state.slots.allocator.allocate(length)
        if offset is None:
            raise IntegrityError("room was made, but the allocator finds none")
        record = SlotRecord(
            digest, offset, length, namespace.model_id, namespace.salt_id,
            rank_group[0], rank_group[1], namespace.root_id, owner_uid,
        )  # fmt: skip
        slot = state.slots.reserve(record)
        self._steps.reached("l1.reserved")
        namespace.writing[rank_group, digest] = slot
        namespace.num_objects += 1
        state.write_deadlines[slot] = self._clock() + self._write_ttl_s
        result.slots.append(slot)
        return ReserveStatus.RESERVED

    def commit(self, owner_uid: int, places: Sequence[Place]) -> list[int]:
        """Make written slots findable; returns those accepted. One whose time ran out, or that was
        cleared meanwhile, is freed instead, now that its owner is done with it."""
        accepted = []
        with self._mutex:
            for place in places:
                if self._is_writing(owner_uid, place):
                    self._commit_one(place.slot)
                    accepted.append(place.slot)
                else:
                    self._free_quarantined(owner_uid, place)
            # As in a lookup: a prompt's tail ends up least recent, so it is evicted before its head.
            self._state.touch(reversed(accepted))
        return accepted

    def _commit_one(self, slot: int) -> None:
        state = self._state
        record = state.slots.records.read(slot)
        namespace = state.namespace_of(record)
        del namespace.writing[(record.kv_rank, record.group_id), record.digest]
        del state.write_deadlines[slot]
        self._steps.reached("l1.commit")
        state.slots.set_state(slot, SlotState.WRITING, SlotState.READY)
        self._steps.reached("l1.committed")
        state.add_ready(slot, record, namespace)

    def abort(self, owner_uid: int, places: Sequence[Place]) -> int:
        """The owner is done with these slots and did not fill them; returns how many were freed."""
        num_freed = 0
        with self._mutex:
            for place in places:
                if self._is_writing(owner_uid, place):
                    self._state.quarantine_writing(place.slot)
                num_freed += self._free_quarantined(owner_uid, place)
        return num_freed

    def abort_owner(self, owner_uid: int, still_writing: Sequence[Place] = ()) -> int:
        """The owner is dead, or says that it writes nothing but `still_writing`: free the rest of its slots."""
        keep = {place.slot: place.slot_word for place in still_writing}
        num_freed = 0
        with self._mutex:
            slots = self._state.slots
            pending = [slot for slot in self._pending_slots() if slots.records.owner_uid(slot) == owner_uid]
            for slot in pending:
                word = slots.records.slot_word(slot)
                if ready_word(word) == ready_word(keep.get(slot, -1)):
                    continue
                if state_of(word) is SlotState.WRITING:
                    self._state.quarantine_writing(slot)
                slots.free(slot, SlotState.QUARANTINED)
                num_freed += 1
        return num_freed

    def pending_owners(self) -> set[int]:
        """Clients that own a slot which is neither free nor ready."""
        with self._mutex:
            records = self._state.slots.records
            return {records.owner_uid(slot) for slot in self._pending_slots()}

    def quarantine_expired(self) -> int:
        """Hide writes that outlived their time; the slot waits for its owner."""
        now, num_hidden = self._clock(), 0
        with self._mutex:
            deadlines = self._state.write_deadlines
            for slot in [slot for slot, deadline in deadlines.items() if deadline <= now]:
                self._state.quarantine_writing(slot)
                num_hidden += 1
        return num_hidden

    def quarantine_writes(self, root: bytes, owner_uids: set[int]) -> int:
        """Hide what these clients are writing under a root: their KV became doubtful on the way."""
        num_hidden = 0
        with self._mutex:
            for namespace in [ns for ns in self._state.namespaces.values() if ns.key.root == root]:
                for slot in list(namespace.writing.values()):
                    if self._state.slots.records.owner_uid(slot) in owner_uids:
                        self._state.quarantine_writing(slot)
                        num_hidden += 1
        return num_hidden

    def _pending_slots(self) -> list[int]:
        slots = self._state.slots
        if not slots.counts[SlotState.WRITING] and not slots.counts[SlotState.QUARANTINED]:
            return []
        return slots.records.slots_in((SlotState.WRITING, SlotState.QUARANTINED))

    def _has_word(self, place: Place) -> bool:
        records = self._state.slots.records
        return 0 <= place.slot < records.num_records and records.slot_word(place.slot) == place.slot_word

    def _is_writing(self, owner_uid: int, place: Place) -> bool:
        return (
            self._has_word(place)
            and state_of(place.slot_word) is SlotState.WRITING
            and self._state.slots.records.owner_uid(place.slot) == owner_uid
        )

    def _free_quarantined(self, owner_uid: int, place: Place) -> bool:
        slots = self._state.slots
        if not 0 <= place.slot < slots.records.num_records:
            return False
        word = slots.records.slot_word(place.slot)
        is_its_own = ready_word(word) == ready_word(place.slot_word) and slots.records.owner_uid(place.slot) == owner_uid
        if state_of(word) is not SlotState.QUARANTINED or not is_its_own:
            return False
        slots.free(place.slot, SlotState.QUARANTINED)
        return True

    # Reading

    def lookup(
        self, key: NamespaceKey, rank_groups: list[RankGroup], digests: list[bytes], budget: LockBudget | None
    ) -> tuple[list[int], bytes]:
        """Slots of the longest prefix that all ranks hold, chunk-major, and their places.

        With a budget, takes one read lock on each, as far as it reaches (whole chunks);
        without, only counts as a use.
        """
        with self._mutex:
            namespace = self._state.namespaces.get(key)
            slots = namespace.prefix_slots(rank_groups, digests) if namespace is not None else []
            if budget is not None:
                slots = self._lockable(slots, len(rank_groups), budget)
                for slot in slots:
                    self._lock(slot)
            self._state.touch(reversed(slots))
            return slots, self._state.slots.records.places(slots) if slots else b""

    def touch(self, key: NamespaceKey, rank_groups: list[RankGroup], digests: list[bytes]) -> None:
        """Those of these chunks that are here were used, the first of them last of all."""
        with self._mutex:
            namespace = self._state.namespaces.get(key)
            if namespace is not None:
                self._state.touch(reversed(namespace.held_slots(rank_groups, digests)))

    def _lockable(self, slots: list[int], num_ranks: int, budget: LockBudget) -> list[int]:
        """As many whole chunks as the budget pays for."""
        records, left = self._state.slots.records, budget.num_bytes
        if not slots:
            return slots
        # All chunks of a prompt are alike: where even all of them as new are paid for, look no closer.
        chunk_bytes = sum(records.extent(slot)[1] for slot in slots[:num_ranks])
        if len(slots) // num_ranks * chunk_bytes <= left:
            return slots
        for start in range(0, len(slots), num_ranks):
            for slot in slots[start : start + num_ranks]:
                length = records.extent(slot)[1]
                if not budget.is_held(Place(slot, records.slot_word(slot), length)):
                    left -= length
            if left < 0:
                return slots[:start]
        return slots

    def _lock(self, slot: int) -> None:
        counts = self._state.lock_counts
        count = counts.get(slot, 0)
        if not count:
            self._state.policy.remove(slot)
        counts[slot] = count + 1

    def unlock(self, places: Sequence[Place]) -> None:
        """Give back one read lock on each; a slot that was freed meanwhile is left alone.

        Tail first, so that the tail is the first to be evicted.
        """
        with self._mutex:
            state, counts = self._state, self._state.lock_counts
            for place in reversed(places):
                if not self._has_word(place) or place.slot not in counts:
                    continue
                if counts[place.slot] > 1:
                    counts[place.slot] -= 1
                    continue
                del counts[place.slot]
                state.policy.touch((place.slot,))

    # Removing

    def _make_room(self, length: int, result: ReserveResult) -> bool:
        slots = self._state.slots
        if slots.allocator.rounded(length) > slots.allocator.capacity_bytes:
            return False
        while not slots.has_room(length):
            victim = next(self._state.policy.victims(), None)
            if victim is None:
                return False
            result.num_evicted += self._evict_chunk(victim)
        return True

    def _evict_chunk(self, victim: int) -> int:
        """Remove a slot and, with it, the other ranks of its chunk that nobody has locked."""
        state = self._state
        record = state.slots.records.read(victim)
        siblings = state.namespace_of(record).siblings(record.digest)
        num_removed = 0
        for slot in siblings:
            if slot == victim or slot not in state.lock_counts:
                state.remove_ready(slot, state.slots.records.read(slot))
                self._steps.reached("l1.evicted")
                num_removed += 1
        return num_removed

    def evict_to(self, usage_bytes_max: int, num_objects_max: int) -> int:
        """Evict until usage is at most that, or that many objects went; returns how many."""
        num_evicted = 0
        with self._mutex:
            while num_evicted < num_objects_max and self._state.slots.allocator.used_bytes > usage_bytes_max:
                victim = next(self._state.policy.victims(), None)
                if victim is None:
                    break
                num_evicted += self._evict_chunk(victim)
        return num_evicted

    def clear(self, force: bool) -> int:
        """Remove every object (without `force`, those nobody has locked); writes under way are hidden."""
        with self._mutex:
            allocator = self._state.slots.allocator
            allocator.check_integrity()
            num_removed = self._remove_where(lambda namespace: True, force)
            if force:
                for slot in list(self._state.write_deadlines):
                    self._state.quarantine_writing(slot)
            allocator.check_integrity()
        return num_removed

    def delete_root(self, root: bytes, num_objects_max: int) -> int:
        """Remove objects of a root that nobody has locked; returns how many."""
        with self._mutex:
            return self._remove_where(lambda namespace: namespace.key.root == root, False, num_objects_max)

    def has_root(self, root: bytes) -> bool:
        """Whether anything of a root is held, locked or being written included."""
        with self._mutex:
            return any(key.root == root for key in self._state.namespaces)

    def _remove_where(
        self, wanted: Callable[[Namespace], bool], force: bool, num_objects_max: int | None = None
    ) -> int:
        state = self._state
        found = (
            slot
            for namespace in state.namespaces.values()
            if wanted(namespace)
            for table in namespace.ready.values()
            for slot in table.values()
            if force or slot not in state.lock_counts
        )
        slots = list(islice(found, num_objects_max))
        for slot in slots:
            state.remove_ready(slot, state.slots.records.read(slot))
        return len(slots)

    def take_removed(self) -> list[RemovedObject]:
        """Objects removed since the last call, oldest first; the oldest are lost past a bound."""
        with self._mutex:
            removed = list(self._state.removed)
            self._state.removed.clear()
            return removed

    # Telling

    def places(self, slots: list[int]) -> bytes:
        """Slot, slot word, offset and length of each slot, packed."""
        with self._mutex:
            return self._state.slots.records.places(slots) if slots else b""

    def salts_of(self, places: Sequence[Place]) -> list[str]:
        """The tenant of each slot in use, empty where the slot is not what it was."""
        with self._mutex:
            records = self._state.slots.records
            return [
                self._state.namespace_of(records.read(place.slot)).key.cache_salt
                if self._has_word(place) and state_of(place.slot_word) in (SlotState.WRITING, SlotState.READY)
                else ""
                for place in places
            ]

    def usage_bytes_by_salt(self) -> dict[str, int]:
        with self._mutex:
            return dict(self._state.usage_bytes)

    def memory_bytes(self) -> tuple[int, int]:
        """Used and usable bytes."""
        with self._mutex:
            allocator = self._state.slots.allocator
            return allocator.used_bytes, allocator.capacity_bytes

    def report(self) -> dict[str, int | float]:
        with self._mutex:
            state, allocator = self._state, self._state.slots.allocator
            return {
                "total_object_count": state.slots.counts[SlotState.READY] + state.slots.counts[SlotState.WRITING],
                "write_locked_count": state.slots.counts[SlotState.WRITING],
                "read_locked_count": len(state.lock_counts),
                "temporary_count": 0,
                "quarantined_count": state.slots.counts[SlotState.QUARANTINED],
                "quarantined_bytes": state.slots.quarantined_bytes,
                "memory_used_bytes": allocator.used_bytes,
                "memory_total_bytes": allocator.capacity_bytes,
                "memory_usage_ratio": allocator.used_bytes / allocator.capacity_bytes if allocator.capacity_bytes else 0.0,
            }

    def check_allocator(self) -> None:
        """Raise IntegrityError unless the allocator's lists agree; cheap enough for a status."""
        with self._mutex:
            self._state.slots.allocator.check_integrity()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every table agrees with every other. Slow: for tests."""
        with self._mutex:
            self._state.check_integrity()
