"""L1 for operators: its objects by key and page by page. Works on L1's tables, under the manager's mutex.

A key names no root, so a digest is looked for under every root of its model and tenant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lmcache.core.keys import ObjectKey
from lmcache.l1.namespace import Namespace
from lmcache.l1.state import L1State
from lmcache.memory.names import NameKind
from lmcache.memory.records import SlotState, state_of

_RECORDS_PER_SLICE = 16_384
_OBJECTS_PER_SLICE = 512


def delete_keys(state: L1State, keys: Sequence[ObjectKey], force: bool) -> tuple[list[ObjectKey], list[ObjectKey]]:
    """Remove objects; what is locked or being written is left, or with `force` removed or hidden as well.
    The keys of which something went and of which something was left."""
    by_owner: defaultdict[tuple[str, str], list[Namespace]] = defaultdict(list)
    for namespace in state.namespaces.values():
        by_owner[namespace.key.model_name, namespace.key.cache_salt].append(namespace)
    deleted, left = [], []
    for key in keys:
        num_deleted = num_left = 0
        for namespace in by_owner.get((key.model_name, key.cache_salt), ()):
            is_gone = _delete_from(state, namespace, key, force)
            num_deleted += is_gone is True
            num_left += is_gone is False
        if num_deleted:
            deleted.append(key)
        if num_left:
            left.append(key)
    return deleted, left


def _delete_from(state: L1State, namespace: Namespace, key: ObjectKey, force: bool) -> bool | None:
    """None: the namespace does not hold it."""
    rank_group = (key.kv_rank, key.object_group_id)
    slot = namespace.ready.get(rank_group, {}).get(key.chunk_hash)
    if slot is not None:
        if not force and slot in state.lock_counts:
            return False
        state.remove_ready(slot, state.slots.records.read(slot))
        return True
    slot = namespace.writing.get((rank_group, key.chunk_hash))
    if slot is None:
        return None
    if force:
        state.quarantine_writing(slot)
    return force


def page(
    state: L1State, first_slot: int, num_keys_max: int, model_name: str | None
) -> tuple[list[tuple[ObjectKey, int]], int]:
    """Objects from `first_slot` on with their bytes, and the slot to go on with: a few slots, so that nobody
    waits long. Those of other models are not looked at one by one."""
    records, model_id = state.slots.records, None
    if model_name is not None:
        model_id = state.names.find(NameKind.MODEL, model_name.encode())
        if model_id is None:
            return [], records.num_records
    next_slot = min(first_slot + _RECORDS_PER_SLICE, records.num_records)
    used = records.used_between(first_slot, next_slot, model_id)
    if len(used) > _OBJECTS_PER_SLICE:
        next_slot = used[_OBJECTS_PER_SLICE]
        del used[_OBJECTS_PER_SLICE:]
    found: list[tuple[ObjectKey, int]] = []
    for slot in used:
        if len(found) == num_keys_max:
            return found, slot
        if state_of(records.slot_word(slot)) is not SlotState.READY:
            continue
        record = records.read(slot)
        name = state.namespace_of(record).key
        key = ObjectKey(record.digest, name.model_name, record.kv_rank, record.group_id, name.cache_salt)
        found.append((key, record.length))
    return found, next_slot
