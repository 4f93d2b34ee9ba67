"""Rebuild L1 from the mapped index after a server died. Doubt about a record drops its object.

Ready objects come back with their recency; slots that were being written are quarantined
until their owner says it is done, or is dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lmcache.l1.namespace import Namespace, NamespaceKey
from lmcache.l1.state import L1State
from lmcache.memory.names import NameKind
from lmcache.memory.records import ScannedRecords, SlotState


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    num_ready: int
    num_quarantined: int
    num_dropped: int


def recover(state: L1State, align_bytes: int) -> RecoveryReport:
    """Fill an empty `state` from its records. The allocator's capacity grows to the last byte in use."""
    records = state.slots.records
    scanned = records.scan()
    doubtful = _overlapping(scanned, align_bytes)
    is_ready = (scanned.states == SlotState.READY) & ~doubtful
    is_pending = np.isin(scanned.states, (SlotState.WRITING, SlotState.QUARANTINED)) & ~doubtful
    dropped = scanned.broken + scanned.slots[doubtful].tolist()
    kept, tenants, unnamed = _fill_tables(state, scanned, np.flatnonzero(is_ready))
    dropped += unnamed
    for slot in dropped:
        records.set_state(slot, SlotState.FREE)
    pending = scanned.slots[is_pending].tolist()
    for slot in pending:
        records.set_state(slot, SlotState.QUARANTINED)
    _rebuild_slots(state, scanned, kept, np.flatnonzero(is_pending), align_bytes)
    _track(state, scanned, kept, tenants)
    state.start_clock(int(scanned.recency.max()) if len(scanned.recency) else 0)
    state.names.forget_unused()
    return RecoveryReport(len(kept), len(pending), len(dropped))


def _overlapping(scanned: ScannedRecords, align_bytes: int) -> np.ndarray:
    """Marks records whose bytes another record claims too: which of them is right, nobody knows."""
    doubtful = np.zeros(len(scanned.slots), dtype=bool)
    order = np.argsort(scanned.offsets, kind="stable")
    starts = scanned.offsets[order]
    ends = _ends(scanned, order, align_bytes)
    reach = np.maximum.accumulate(ends) if len(ends) else ends
    for later in np.flatnonzero(starts[1:] < reach[:-1]).tolist():
        doubtful[order[later + 1]] = True
        clashing = np.flatnonzero(ends[: later + 1] > starts[later + 1])
        doubtful[order[clashing]] = True
    return doubtful


def _ends(scanned: ScannedRecords, order: np.ndarray, align_bytes: int) -> np.ndarray:
    """Where the bytes of these records end, rounded up as the allocator rounds."""
    align = np.uint64(align_bytes)
    ends: np.ndarray = scanned.offsets[order] + (scanned.lengths[order] + align - np.uint64(1)) // align * align
    return ends


def _fill_tables(state: L1State, scanned: ScannedRecords, ready: np.ndarray) -> tuple[np.ndarray, list[str], list[int]]:
    """Tables and usage from the ready records; indices kept and their tenants, and slots of those
    without a name or doubled."""
    kept: list[np.ndarray] = []
    tenants: list[str] = []
    dropped: list[int] = []
    for ids, members in _groups(scanned, ready):
        model_id, root_id, salt_id, kv_rank, group_id = ids
        namespace = _named_namespace(state, model_id, root_id, salt_id)
        slots = scanned.slots[members].tolist()
        if namespace is None:
            dropped += slots
            continue
        table = namespace.table((kv_rank, group_id))
        table.update(zip(state.slots.records.digests(scanned.slots[members]), slots, strict=True))
        if len(table) < len(slots):
            survivors = set(table.values())
            dropped += [slot for slot in slots if slot not in survivors]
            members = members[np.isin(scanned.slots[members], list(survivors))]
        namespace.num_objects += len(table)
        salt = namespace.key.cache_salt
        state.usage_bytes.count(salt, int(scanned.lengths[members].sum()))
        kept.append(members)
        tenants += [salt] * len(members)
    return (np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)), tenants, dropped


def _track(state: L1State, scanned: ScannedRecords, kept: np.ndarray, tenants: list[str]) -> None:
    """Ready objects enter the policy's order by their last use. What it knew of uses before is lost."""
    add = state.policy.add
    slots = scanned.slots[kept]
    order = np.argsort(scanned.recency[kept], kind="stable")
    key_hashes = state.slots.records.key_hashes(slots[order]).tolist()
    for slot, key_hash, index in zip(slots[order].tolist(), key_hashes, order.tolist(), strict=True):
        add(slot, key_hash, tenants[index])
    if state.policy.is_per_tenant:
        state.grown.update(dict.fromkeys(tenants))


def _groups(scanned: ScannedRecords, ready: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Indices of ready records by (model, root, salt, rank, group)."""
    columns = (scanned.model_ids, scanned.root_ids, scanned.salt_ids, scanned.kv_ranks, scanned.group_ids)
    if not len(ready):
        return
    keys = np.stack([column[ready] for column in columns], axis=1)
    order = np.lexsort(keys.T[::-1])
    keys = keys[order]
    borders = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    for first, last in zip([0, *borders.tolist()], [*borders.tolist(), len(keys)], strict=True):
        yield tuple(keys[first].tolist()), ready[order[first:last]]


def _named_namespace(state: L1State, model_id: int, root_id: int, salt_id: int) -> Namespace | None:
    names = state.names
    known = [
        (name_id, name)
        for name_id, kind in ((model_id, NameKind.MODEL), (root_id, NameKind.ROOT), (salt_id, NameKind.SALT))
        if (name := names.acquire_id(name_id, kind)) is not None
    ]
    if len(known) == 3:
        key = NamespaceKey(known[0][1].decode(), known[1][1], known[2][1].decode())
        found = state.namespaces.get(key)
        if found is None:
            namespace = Namespace(key, model_id, root_id, salt_id)
            state.add_namespace(namespace)
            return namespace
        known_again = found
    else:
        known_again = None
    for name_id, _ in known:
        names.release(name_id)
    return known_again


def _rebuild_slots(
    state: L1State, scanned: ScannedRecords, kept: np.ndarray, pending: np.ndarray, align_bytes: int
) -> None:
    indices = np.concatenate([kept, pending])
    order = indices[np.argsort(scanned.offsets[indices], kind="stable")]
    starts = scanned.offsets[order]
    ends = _ends(scanned, order, align_bytes)
    allocator = state.slots.allocator
    if len(ends):
        allocator.grow(int(ends[-1]))
    # Only where one object does not begin where the one before it ends is there a gap.
    gaps = np.flatnonzero(np.append(starts[1:], ends[-1:]) != ends) if len(ends) else ends
    bounds = [0, *ends[gaps].tolist()]
    nexts = [int(starts[0]) if len(starts) else 0, *starts[gaps + 1].tolist()]
    allocator.rebuild([(start, end - start) for start, end in zip(bounds, nexts, strict=True) if end > start])
    used = dict.fromkeys(scanned.slots[kept].tolist(), SlotState.READY)
    used.update(dict.fromkeys(scanned.slots[pending].tolist(), SlotState.QUARANTINED))
    state.slots.adopt(used)
