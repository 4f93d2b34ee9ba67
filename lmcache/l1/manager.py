"""The L1 manager: reserve, commit, abort, lookup, lock, evict, clear, over one pool.

One mutex guards all tables; every public call is atomic and does no I/O but for new names.
State machine of a slot: see memory/records.py. Who may touch a slot's bytes: its owner
from reserve to commit or abort, readers while it is READY, nobody else ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.eviction.base import EvictionPolicy
from lmcache.l1 import by_key, keeping, telling
from lmcache.l1.clearing import clear_slice
from lmcache.l1.evictor import Evictor
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.quota_room import QuotaRoom
from lmcache.l1.read_locks import ReadLocks
from lmcache.l1.recovery import RecoveryReport, recover
from lmcache.l1.state import L1State, RemovedObject
from lmcache.l1.tier_moves import HeldObject, TierMoves
from lmcache.l1.values import LockBudget, Place, ReserveResult
from lmcache.l1.writes import SlotWrites
from lmcache.memory.allocator import ALIGN_BYTES
from lmcache.protocol.messages import ReserveStatus
from lmcache.quota.manager import QuotaManager
from lmcache.telemetry.steps import NO_STEPS, StepObserver


class L1Manager:
    """Thread-safe. `clock` is monotonic seconds; `steps` sees each write that a crash could follow.
    `quotas` counts only with a policy that tells tenants apart."""

    def __init__(
        self,
        state: L1State,
        write_ttl_s: float,
        clock: Callable[[], float],
        steps: StepObserver = NO_STEPS,
        quotas: QuotaManager | None = None,
    ) -> None:
        self._state = state
        self._quota_room = QuotaRoom(state, quotas or QuotaManager())
        self._evictor = Evictor(state, self._quota_room, steps)
        self._writes = SlotWrites(state, self._evictor, write_ttl_s, clock, steps)
        self._locks = ReadLocks(state)
        self._moves = TierMoves(state, self._locks, self._writes)
        # Told after each reservation, without the mutex: how many objects were evicted for it, and found no room.
        self.on_made_room: Callable[[int, int], None] = lambda num_evicted, num_without_room: None
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
        with self._mutex:
            result = self._writes.reserve_all(key, rank_group, owner_uid, digests, length)
        self.on_made_room(result.num_evicted, result.statuses.count(ReserveStatus.NO_ROOM))
        return result

    def commit(self, owner_uid: int, places: Sequence[Place]) -> list[int]:
        """Make written slots findable; returns those accepted. One whose time ran out, or that was
        cleared meanwhile, is freed instead, now that its owner is done with it."""
        with self._mutex:
            accepted = [place.slot for place in places if self._writes.commit(owner_uid, place)]
            # As in a lookup: a prompt's tail ends up least recent, so it is evicted before its head.
            self._state.track(reversed(accepted))
        return accepted

    def abort(self, owner_uid: int, places: Sequence[Place]) -> int:
        """The owner is done with these slots and did not fill them; returns how many were freed."""
        with self._mutex:
            return sum(self._writes.abort(owner_uid, place) for place in places)

    def abort_owner(self, owner_uid: int, still_writing: Sequence[Place] = ()) -> int:
        """The owner is dead, or says that it writes nothing but `still_writing`: free the rest of its slots."""
        with self._mutex:
            return self._writes.abort_owner(owner_uid, {place.slot: place.slot_word for place in still_writing})

    def pending_owners(self) -> set[int]:
        """Clients that own a slot which is neither free nor ready."""
        with self._mutex:
            return {self._state.slots.records.owner_uid(slot) for slot in self._writes.pending()}

    def quarantine_expired(self) -> int:
        """Hide writes that outlived their time; the slot waits for its owner."""
        with self._mutex:
            return self._writes.quarantine(self._writes.expired())

    def quarantine_writes(self, root: bytes, owner_uids: set[int]) -> int:
        """Hide what these clients are writing under a root: their KV became doubtful on the way."""
        with self._mutex:
            return self._writes.quarantine(self._writes.under_root(root, owner_uids))

    # Reading

    def lookup(
        self, key: NamespaceKey, rank_groups: list[RankGroup], digests: list[bytes], budget: LockBudget | None
    ) -> tuple[list[int], bytes]:
        """Slots of the longest prefix that all ranks hold, chunk-major, and their places.

        With a budget, takes one read lock on each, as far as it reaches (whole chunks);
        without, only makes them recent: the use that counts is the one that locks.
        """
        with self._mutex:
            namespace = self._state.namespaces.get(key)
            slots = namespace.prefix_slots(rank_groups, digests) if namespace is not None else []
            if budget is not None:
                slots = self._locks.lock(slots, len(rank_groups), budget)
                self._state.touch(reversed(slots))
            else:
                self._state.refresh(reversed(slots))
            return slots, self._state.slots.records.places(slots) if slots else b""

    def touch(self, key: NamespaceKey, rank_groups: list[RankGroup], digests: list[bytes]) -> None:
        """Those of these chunks that are here were in use until now, the first of them last of all."""
        with self._mutex:
            namespace = self._state.namespaces.get(key)
            if namespace is not None:
                self._state.refresh(reversed(namespace.held_slots(rank_groups, digests)))

    def unlock(self, places: Sequence[Place]) -> None:
        """Give back one read lock on each, so that the tail is the first to be evicted."""
        with self._mutex:
            self._locks.unlock(places)

    # L2

    def describe(self, place: Place) -> HeldObject | None:
        """What a place holds, if it is still what it was."""
        with self._mutex:
            return self._moves.describe(place)

    def holds(self, place: Place) -> bool:
        """Whether a place is still what it was: to be asked after its bytes were read without a lock."""
        return self._state.has_word(place.slot, place.slot_word)

    def is_lossy(self, place: Place) -> bool:
        """Whether a place that is locked has the mark."""
        return self._state.slots.records.is_lossy(place.slot)

    def lock_key(self, key: NamespaceKey, rank_group: RankGroup, digest: bytes, retain: bool) -> Place | None:
        """Lock the object of a key, if it is here. With `retain`, it is not temporary any more."""
        with self._mutex:
            return self._moves.lock_key(key, rank_group, digest, retain)

    def lock_keys(
        self, key: NamespaceKey, rank_group: RankGroup, digests: Sequence[bytes], retain: bool
    ) -> list[tuple[Place, int]]:
        """The same for the leading ones of these that are here: places, and offsets in the pool."""
        with self._mutex:
            return self._moves.lock_keys(key, rank_group, digests, retain)

    def commit_loaded(
        self, owner_uid: int, place: Place, lock: bool, is_temporary: bool, is_lossy: bool = False
    ) -> Place | None:
        """Make an object that was loaded findable, and lock it; a temporary one goes with its last lock, a lossy one
        never goes to a tier. None where its time ran out."""
        with self._mutex:
            return self._moves.commit_loaded(owner_uid, place, lock, is_temporary, is_lossy)

    def remove(self, places: Sequence[Place]) -> int:
        """Remove these objects, but those that somebody has locked; returns how many."""
        with self._mutex:
            return self._moves.remove(places)

    def let_go(self, places: Sequence[Place]) -> None:
        """Remove these objects; one that somebody has locked goes with its last lock."""
        with self._mutex:
            keeping.let_go(self._state, places)

    # Keeping

    def freeze(self, is_frozen: bool) -> None:
        """While frozen nothing comes, not even what is being written, nothing is evicted, and no order changes;
        readers lock and unlock as ever, and what is removed on request goes."""
        with self._mutex:
            (keeping.freeze if is_frozen else keeping.thaw)(self._state)

    def keep_loaded(self, keeps_loaded: bool) -> None:
        """Without: what readers have locked goes with their last lock, and so does all that is loaded from now on."""
        with self._mutex:
            keeping.keep(self._state, keeps_loaded)

    def set_policy(self, policy: EvictionPolicy) -> None:
        """Order what is held by another policy, beginning with the order of last use."""
        with self._mutex:
            keeping.set_policy(self._state, policy)

    # Removing

    def evict_to(self, usage_bytes_max: int, num_objects_max: int) -> int:
        """Evict until usage is at most that, or that many objects went; returns how many."""
        with self._mutex:
            return self._evictor.evict_to(usage_bytes_max, num_objects_max)

    def tenants_beyond_limit(self) -> list[str]:
        """Tenants that hold more than their quota now, where the policy tells tenants apart."""
        with self._mutex:
            return self._quota_room.tenants_beyond()

    @property
    def is_per_tenant(self) -> bool:
        """Whether the policy tells tenants apart."""
        return self._state.policy.is_per_tenant

    def evict_excess(self, tenant: str, limit_bytes: int, num_objects_max: int) -> tuple[int, int]:
        """Evict what a tenant holds beyond a limit, oldest first, and not what is locked: objects and
        bytes that went. At least so many objects: there may be more to evict."""
        with self._mutex:
            return self._evictor.evict_excess(tenant, limit_bytes, num_objects_max)

    def clear(self, force: bool) -> int:
        """Remove every object (without `force`, those nobody has locked); with it, writes under way are hidden."""
        num_removed, slot = 0, 0
        while slot < self._state.slots.records.num_records:
            num_more, slot = self.clear_slice(slot, force)
            num_removed += num_more
        return num_removed

    def clear_slice(self, first_slot: int, force: bool) -> tuple[int, int]:
        """The same for a few slots from `first_slot` on, so that nobody waits long: how many objects
        went, and the slot to go on with. What is stored meanwhile may go too."""
        with self._mutex:
            return clear_slice(self._state, first_slot, force)

    def delete_root(self, root: bytes, num_objects_max: int) -> int:
        """Remove objects of a root that nobody has locked; returns how many."""
        with self._mutex:
            return self._evictor.remove_where(lambda namespace: namespace.key.root == root, False, num_objects_max)

    def delete_keys(self, keys: Sequence[ObjectKey], force: bool) -> tuple[list[ObjectKey], list[ObjectKey]]:
        """Remove objects by key, under whatever root; with `force`, locked ones and writes under way as well.
        The keys of which something went, and of which something was left."""
        with self._mutex:
            return by_key.delete_keys(self._state, keys, force)

    def has_root(self, root: bytes) -> bool:
        """Whether anything of a root is held, locked or being written included."""
        with self._mutex:
            return any(key.root == root for key in self._state.namespaces)

    def take_removed(self) -> list[RemovedObject]:
        """Objects removed since the last call, oldest first; the oldest are lost past a bound."""
        with self._mutex:
            return telling.take_all(self._state.removed)

    def take_added(self) -> list[tuple[bytes, str]]:
        """Digest and tenant of objects that came since the last call, under the same bound."""
        with self._mutex:
            return telling.take_all(self._state.added)

    # Telling

    def page(
        self, first_slot: int, num_keys_max: int, model_name: str | None
    ) -> tuple[list[tuple[ObjectKey, int]], int]:
        """Some objects from `first_slot` on with their bytes, and the slot to go on with."""
        with self._mutex:
            return by_key.page(self._state, first_slot, num_keys_max, model_name)

    def places(self, slots: list[int]) -> bytes:
        """Slot, slot word, offset and length of each slot, packed."""
        with self._mutex:
            return self._state.slots.records.places(slots) if slots else b""

    def salts_of(self, places: Sequence[Place]) -> list[str]:
        """The tenant of each slot in use, empty where the slot is not what it was."""
        with self._mutex:
            return telling.salts_of(self._state, places)

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
            return telling.report(self._state)

    def check_allocator(self) -> None:
        """Raise IntegrityError unless the allocator's lists agree, as far as a sample shows: for a status."""
        with self._mutex:
            self._state.slots.allocator.check_sample()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every table agrees with every other. Slow: for tests."""
        with self._mutex:
            self._state.check_integrity()
