"""Making room: which chunk goes, and what goes with it. Works on L1's tables, under the manager's mutex."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from lmcache.l1.namespace import Namespace
from lmcache.l1.quota_room import QuotaRoom
from lmcache.l1.state import L1State
from lmcache.telemetry.steps import StepObserver


class Evictor:
    """Evicts exactly what is needed, when it is needed; the ranks of a chunk leave together.

    With a policy that tells tenants apart, whose objects go is decided by `quota_room`, and
    which of them by the policy.
    """

    def __init__(self, state: L1State, quota_room: QuotaRoom, steps: StepObserver) -> None:
        self._state = state
        self._quota_room = quota_room
        self._steps = steps
        self.num_evicted = 0

    def make_room(self, length: int, tenant: str) -> bool:
        """Evict until an object of `length` bytes fits, one of that tenant's. False if it never will."""
        slots = self._state.slots
        if slots.allocator.rounded(length) > slots.allocator.capacity_bytes:
            return False
        while not slots.has_room(length):
            victim = self._quota_room.victim_for(tenant, length)
            if victim is None:
                return False
            self._evict_chunk(victim)
        return True

    def evict_next(self) -> int:
        """Remove the chunk that must go first; how many objects that were. 0: none may go."""
        victim = self._quota_room.victim() if not self._state.is_frozen else None
        return self._evict_chunk(victim) if victim is not None else 0

    def evict_to(self, usage_bytes_max: int, num_objects_max: int) -> int:
        """Evict until usage is at most that, or that many objects went; returns how many."""
        num_evicted = 0
        while num_evicted < num_objects_max and self._state.slots.allocator.used_bytes > usage_bytes_max:
            num_gone = self.evict_next()
            if not num_gone:
                break
            num_evicted += num_gone
        return num_evicted

    def evict_excess(self, tenant: str, limit_bytes: int, num_objects_max: int) -> tuple[int, int]:
        """Evict what a tenant holds beyond a limit, oldest first; objects and bytes that went."""
        num_gone, bytes_before = 0, self._state.usage_bytes.get(tenant, 0)
        while num_gone < num_objects_max and not self._state.is_frozen:
            victim = self._quota_room.victim_beyond(tenant, limit_bytes)
            if victim is None:
                break
            num_gone += self._evict_chunk(victim)
        return num_gone, bytes_before - self._state.usage_bytes.get(tenant, 0)

    def _evict_chunk(self, victim: int) -> int:
        """Remove a slot and, with it, the other ranks of its chunk that nobody has locked."""
        state = self._state
        record = state.slots.records.read(victim)
        siblings = state.namespace_of(record).siblings(record.digest)
        num_removed = 0
        for slot in siblings:
            if slot == victim or slot not in state.lock_counts:
                state.remove_ready(slot, state.slots.records.read(slot), is_evicted=True)
                self._steps.reached("l1.evicted")
                num_removed += 1
        self.num_evicted += num_removed
        return num_removed

    def remove_where(self, wanted: Callable[[Namespace], bool], force: bool, num_objects_max: int | None = None) -> int:
        """Remove objects of the wanted namespaces; without `force`, those nobody has locked."""
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
