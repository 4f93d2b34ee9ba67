"""Read locks: counted protection from eviction. Works on L1's tables, under the manager's mutex."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.l1.state import L1State
from lmcache.l1.values import LockBudget, Place


class ReadLocks:
    """A locked object is held in the eviction policy; the last unlock releases it, as just used. While L1 is frozen
    the policy is not told, since nothing is evicted: it learns what came of it at the end (`keeping.thaw`)."""

    def __init__(self, state: L1State) -> None:
        self._state = state

    def lock(self, slots: list[int], num_ranks: int, budget: LockBudget) -> list[int]:
        """Lock whole chunks as far as the budget reaches; those slots."""
        affordable = self._affordable(slots, num_ranks, budget)
        budget.is_spent = len(affordable) < len(slots)
        for slot in affordable:
            self.lock_one(slot)
        return affordable

    def lock_one(self, slot: int) -> None:
        counts = self._state.lock_counts
        count = counts.get(slot, 0)
        if not count and not self._state.is_frozen:
            self._state.policy.hold(slot)
        counts[slot] = count + 1

    def unlock(self, places: Sequence[Place]) -> None:
        """One lock less on each, tail first; a slot that was freed meanwhile is left alone."""
        state, counts = self._state, self._state.lock_counts
        for place in reversed(places):
            if not state.has_word(place.slot, place.slot_word) or place.slot not in counts:
                continue
            if counts[place.slot] > 1:
                counts[place.slot] -= 1
                continue
            del counts[place.slot]
            if place.slot in state.temporary:
                state.remove_ready(place.slot, state.slots.records.read(place.slot))
            elif state.is_frozen:
                state.unlocked_frozen[place.slot] = None
            else:
                state.policy.release(place.slot)

    def _affordable(self, slots: list[int], num_ranks: int, budget: LockBudget) -> list[int]:
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
