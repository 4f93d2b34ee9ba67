"""What L1 is told to do with what it holds: leave it as it is, keep none of it, order it otherwise.

Works on L1's tables, under the manager's mutex.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmcache.eviction.base import EvictionPolicy
from lmcache.l1.state import L1State
from lmcache.l1.values import Place


def freeze(state: L1State) -> None:
    """From now on nothing comes, nothing is evicted, and no order changes."""
    state.is_frozen = True


def thaw(state: L1State) -> None:
    """The policy learns what was locked and unlocked meanwhile."""
    state.is_frozen = False
    for slot in state.lock_counts:
        state.policy.hold(slot)
    for slot in state.unlocked_frozen:
        if slot not in state.lock_counts:
            state.policy.release(slot)
    state.unlocked_frozen.clear()


def keep(state: L1State, keeps_loaded: bool) -> None:
    """Without: what is locked now, or is loaded later, goes with its last lock. The caller clears the rest."""
    state.keeps_loaded = keeps_loaded
    if not keeps_loaded:
        state.temporary.update(state.lock_counts)


def let_go(state: L1State, places: Sequence[Place]) -> None:
    """Remove objects; one that is locked goes with its last lock."""
    for place in places:
        if not state.has_word(place.slot, place.slot_word):
            continue
        if place.slot in state.lock_counts:
            state.temporary.add(place.slot)
        else:
            state.remove_ready(place.slot, state.slots.records.read(place.slot))


def set_policy(state: L1State, policy: EvictionPolicy) -> None:
    """Every object enters the order of another policy by its last use; what the old one knew beyond that is lost."""
    records = state.slots.records
    scanned = records.scan()
    recency = dict(zip(scanned.slots.tolist(), scanned.recency.tolist(), strict=True))
    for slot in sorted((slot for _, _, slot in state.ready_slots()), key=recency.__getitem__):
        policy.add(slot, records.key_hash(slot), state.namespace_of(records.read(slot)).key.cache_salt)
    for slot in state.lock_counts:
        policy.hold(slot)
    state.policy = policy
