"""What an adapter holds, in memory: keys, sizes, leases, usage per tenant, and who goes next.

Knows no backend. An object passes through these states:

    absent --begin_store--> storing --commit--> held --begin_removal--> removing --end_removal--> absent
                               |                                            |
                               +--abort--> absent                           +--restore--> held

Only held objects are found. While one is storing or removing, nobody else may touch that
key on the backend. One mutex guards all of it; no I/O happens here.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lmcache.core.keys import ObjectKey
from lmcache.errors import IntegrityError, KeyFormatError
from lmcache.eviction.base import EvictionPolicy
from lmcache.l2.digest_table import DIGEST_BYTES, DigestTable
from lmcache.l2.object_batch import ObjectBatch, Space

_SCAN_ROWS = 4096
_BATCH_ROWS = 65536
# Hiding one object takes some 10 microseconds, and a lookup may wait for the mutex.
_HIDE_OBJECTS = 256


@dataclass(slots=True)
class _Lease:
    count: int
    ends_s: float


class ObjectIndex:
    """Thread-safe. `capacity_bytes` 0: unlimited. Leases end by themselves after `lease_ttl_s`."""

    def __init__(
        self, policy: EvictionPolicy, capacity_bytes: int, lease_ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock
        self._mutex = threading.Lock()
        self._table = DigestTable()
        self._sizes = array("Q")
        self._spaces: list[Space] = []
        self._space_ids: dict[Space, int] = {}
        self._leases: dict[int, _Lease] = {}
        self._storing: dict[ObjectKey, int] = {}
        self._removing: dict[ObjectKey, int] = {}
        self._removing_bytes = 0
        # Keys that the backend is being asked for, and those of them that left it meanwhile.
        self._probed: dict[ObjectKey, int] = {}
        self._left: set[ObjectKey] = set()
        self._pending_bytes = 0
        self._used_bytes = 0
        self._salt_bytes: dict[str, int] = {}
        self.capacity_bytes = capacity_bytes

    def __len__(self) -> int:
        return len(self._table)

    # Finding

    def lease(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """Which keys are held; each that is gets a lease more, and counts as used (the first one most recently)."""
        with self._mutex:
            ends_s = self._clock() + self._lease_ttl_s
            rows = [self._find(key) for key in keys]
            for row in rows:
                if row < 0:
                    continue
                lease = self._leases.get(row)
                if lease is None:
                    self._leases[row] = _Lease(1, ends_s)
                    self._policy.hold(row)
                else:
                    lease.count, lease.ends_s = lease.count + 1, ends_s
            self._policy.touch(row for row in reversed(rows) if row >= 0)
            return [row >= 0 for row in rows]

    def release(self, keys: Iterable[ObjectKey]) -> None:
        with self._mutex:
            for key in reversed(list(keys)):
                row = self._find(key)
                lease = self._leases.get(row)
                if lease is None:
                    continue
                lease.count -= 1
                if not lease.count:
                    self._drop_lease(row)

    def expire_leases(self) -> int:
        """End leases whose time is up; how many objects became evictable."""
        with self._mutex:
            now_s = self._clock()
            ended = [row for row, lease in self._leases.items() if lease.ends_s <= now_s]
            for row in ended:
                self._drop_lease(row)
            return len(ended)

    def contains(self, key: ObjectKey) -> bool:
        with self._mutex:
            return self._find(key) >= 0

    # Storing

    def begin_store(self, key: ObjectKey, num_bytes: int) -> bool:
        """Claim a key for a store of that many bytes. False: it is held, or somebody works on it."""
        with self._mutex:
            if len(key.chunk_hash) != DIGEST_BYTES:
                raise KeyFormatError(f"a stored chunk_hash has {DIGEST_BYTES} bytes (got {len(key.chunk_hash)})")
            if self._find(key) >= 0 or key in self._storing or key in self._removing:
                return False
            self._storing[key] = num_bytes
            self._pending_bytes += num_bytes
            return True

    def commit(self, key: ObjectKey, num_bytes: int) -> None:
        """The object is on the backend, with that many bytes."""
        with self._mutex:
            self._pending_bytes -= self._storing.pop(key)
            self._add(key, num_bytes)

    def abort(self, key: ObjectKey) -> None:
        with self._mutex:
            self._pending_bytes -= self._storing.pop(key)
            self._note_left(key)

    def adopt(self, key: ObjectKey, num_bytes: int) -> bool:
        """An object that was found on the backend. False: it is known, or being worked on."""
        with self._mutex:
            return self._adopt(key, num_bytes)

    def begin_probe(self, keys: Iterable[ObjectKey]) -> None:
        """The backend will be asked for these keys. An answer that a removal overtakes is not believed."""
        with self._mutex:
            for key in keys:
                self._probed[key] = self._probed.get(key, 0) + 1

    def end_probe(
        self, keys: Sequence[ObjectKey], sizes: Sequence[int], held: Collection[ObjectKey] = ()
    ) -> list[tuple[ObjectKey, int]]:
        """Adopt what was found; a size of -1: absent. Of the keys that were `held` when the probe began, those
        absent are forgotten: they are answered, with their sizes."""
        forgotten = []
        with self._mutex:
            for key, size in zip(keys, sizes, strict=True):
                if key in self._left:
                    continue
                if size >= 0:
                    self._adopt(key, size)
                elif key in held and (known_bytes := self._forget(key)) >= 0:
                    forgotten.append((key, known_bytes))
            for key in keys:
                self._probed[key] -= 1
                if not self._probed[key]:
                    del self._probed[key]
                    self._left.discard(key)
        return forgotten

    def adopt_all(self, batch: ObjectBatch) -> None:
        """Take up everything that was found on the backend; the batch is used up. Only an index that never
        held anything can."""
        with self._mutex:
            if self._table.num_rows or self._storing:
                raise IntegrityError("an index takes up a batch before anything else")
            self._spaces = batch.spaces
            self._space_ids = {space: number for number, space in enumerate(batch.spaces)}
            self._sizes = batch.sizes
            self._table.fill(batch.space_ids, batch.digests)
            self._used_bytes = sum(batch.sizes)
            # Doubles hold any sum of bytes below 8 PiB exactly.
            sums = np.bincount(batch.space_ids, batch.sizes, len(batch.spaces)) if len(batch) else ()
            for space, num_bytes in zip(batch.spaces, sums, strict=True):
                self._count_for(space.cache_salt, int(num_bytes))
            order = np.argsort(np.asarray(batch.stamps), kind="stable")
            for start in range(0, len(order), _BATCH_ROWS):
                self._tell_policy(order[start : start + _BATCH_ROWS].tolist())

    def missing_bytes(self) -> int:
        """How much must go before what is being stored fits (0 or less: it fits). What is going counts as gone."""
        with self._mutex:
            if not self.capacity_bytes:
                return 0
            return self._used_bytes - self._removing_bytes + self._pending_bytes - self.capacity_bytes

    # Removing

    def begin_removal(
        self, keys: Iterable[ObjectKey], force: bool = False
    ) -> tuple[list[ObjectKey], list[ObjectKey], int]:
        """Hide objects by key: those hidden, those left alone for being leased (without `force`),
        and how many are not held."""
        hidden: list[ObjectKey] = []
        leased: list[ObjectKey] = []
        num_absent = 0
        with self._mutex:
            for key in keys:
                row = self._find(key)
                if row < 0:
                    num_absent += 1
                elif row in self._leases and not force:
                    leased.append(key)
                else:
                    self._hide(row, key, is_evicted=False)
                    hidden.append(key)
        return hidden, leased, num_absent

    def begin_eviction(
        self, num_bytes: int, num_objects_max: int, tenant: str | None = None
    ) -> list[tuple[ObjectKey, int]]:
        """Hide objects in the policy's order until that many bytes are. The mutex is let go in between."""
        hidden: list[tuple[ObjectKey, int]] = []
        while num_bytes > 0 and len(hidden) < num_objects_max:
            with self._mutex:
                found = self._hide_victims(num_bytes, min(num_objects_max - len(hidden), _HIDE_OBJECTS), tenant)
            hidden += found
            num_bytes -= sum(size for _, size in found)
            if not found:
                break
        return hidden

    def forget(self, key: ObjectKey) -> int:
        """The backend turned out not to hold it, or to hold garbage: its size, or -1 if it was not known."""
        with self._mutex:
            return self._forget(key)

    def end_removal(self, keys: Iterable[ObjectKey]) -> list[int]:
        """These hidden objects are gone from the backend; their sizes."""
        with self._mutex:
            sizes = []
            for key in keys:
                sizes.append(self._end_removing(key))
                self._note_left(key)
            self._used_bytes -= sum(sizes)
            return sizes

    def restore(self, keys: Iterable[ObjectKey]) -> None:
        """These hidden objects could not be removed: they are held as before."""
        with self._mutex:
            for key in keys:
                size = self._end_removing(key)
                self._used_bytes -= size
                self._add(key, size)

    # Telling

    def usage(self) -> tuple[int, dict[str, int]]:
        """Bytes in use, objects being removed included, and bytes held by tenant."""
        with self._mutex:
            return self._used_bytes, dict(self._salt_bytes)

    def size(self, key: ObjectKey) -> int:
        """Bytes of a held object, or -1."""
        with self._mutex:
            row = self._find(key)
            return self._sizes[row] if row >= 0 else -1

    def leased_keys(self) -> list[ObjectKey]:
        with self._mutex:
            return [self._key(row) for row in self._leases]

    @property
    def num_leased(self) -> int:
        return len(self._leases)

    def page(self, cursor: int, num_keys_max: int, model_name: str | None) -> tuple[list[tuple[ObjectKey, int]], int]:
        """Entries from row `cursor` on, and the cursor that follows; 0: no more. The mutex is let go in between."""
        found: list[tuple[ObjectKey, int]] = []
        row = cursor
        while True:
            with self._mutex:
                stop = min(row + _SCAN_ROWS, self._table.num_rows)
                while row < stop and len(found) < num_keys_max:
                    space_id = self._table.space(row)
                    if space_id >= 0 and model_name in (None, self._spaces[space_id].model_name):
                        found.append((self._key(row), self._sizes[row]))
                    row += 1
                if row >= self._table.num_rows:
                    return found, 0
            if len(found) == num_keys_max:
                return found, row

    def keys_starting_with(self, first_byte: int) -> list[ObjectKey]:
        """The keys held whose hash starts with that byte."""
        with self._mutex:
            rows = self._table.rows_starting_with(first_byte)
            found = [(self._spaces[self._table.space(row)], self._table.digest(row)) for row in rows]
        return [space.key(digest) for space, digest in found]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless keys, sizes, leases, usage and policy agree. Slow: for tests."""
        with self._mutex:
            self._table.check_integrity()
            rows = [row for row in range(self._table.num_rows) if self._table.is_used(row)]
            usage: dict[str, int] = {}
            for row in rows:
                salt = self._spaces[self._table.space(row)].cache_salt
                usage[salt] = usage.get(salt, 0) + self._sizes[row]
            usage = {salt: num_bytes for salt, num_bytes in usage.items() if num_bytes}  # a torn file may be empty
            if usage != self._salt_bytes or sum(usage.values()) + sum(self._removing.values()) != self._used_bytes:
                raise IntegrityError("bytes per tenant and the objects' sizes do not add up")
            if len(self._policy) != len(rows) or not set(self._leases) <= set(rows):
                raise IntegrityError("policy, leases and objects do not add up")
            if self._removing_bytes != sum(self._removing.values()):
                raise IntegrityError("bytes being removed do not add up")
            if self._pending_bytes != sum(self._storing.values()):
                raise IntegrityError("bytes being stored do not add up")

    # Under the mutex

    def _find(self, key: ObjectKey) -> int:
        space_id = self._space_ids.get(Space(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt))
        if space_id is None or len(key.chunk_hash) != DIGEST_BYTES:
            return -1
        return self._table.find(space_id, key.chunk_hash)

    def _key(self, row: int) -> ObjectKey:
        return self._spaces[self._table.space(row)].key(self._table.digest(row))

    def _add(self, key: ObjectKey, num_bytes: int) -> None:
        space = Space(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt)
        space_id = self._space_ids.get(space)
        if space_id is None:
            space_id = self._space_ids[space] = len(self._spaces)
            self._spaces.append(space)
        row = self._table.add(space_id, key.chunk_hash)
        if row == len(self._sizes):
            self._sizes.append(num_bytes)
        else:
            self._sizes[row] = num_bytes
        self._used_bytes += num_bytes
        self._count_for(key.cache_salt, num_bytes)
        self._policy.add(row, int.from_bytes(key.chunk_hash[:8], "little") ^ space_id, key.cache_salt)

    def _adopt(self, key: ObjectKey, num_bytes: int) -> bool:
        is_new = self._find(key) < 0 and key not in self._storing and key not in self._removing
        if is_new and len(key.chunk_hash) == DIGEST_BYTES:
            self._add(key, num_bytes)
        return is_new

    def _forget(self, key: ObjectKey) -> int:
        row = self._find(key)
        if row < 0:
            return -1
        size = self._sizes[row]
        self._hide(row, key, is_evicted=False)
        self._used_bytes -= self._end_removing(key)
        self._note_left(key)
        return size

    def _note_left(self, key: ObjectKey) -> None:
        if key in self._probed:
            self._left.add(key)

    def _count_for(self, cache_salt: str, num_bytes: int) -> None:
        if num_bytes:
            self._salt_bytes[cache_salt] = self._salt_bytes.get(cache_salt, 0) + num_bytes

    def _tell_policy(self, rows: list[int]) -> None:
        """Of rows in bulk, as `_add` does of one."""
        add, spaces = self._policy.add, self._spaces
        for row, space_id, start in zip(rows, *self._table.columns(rows), strict=True):
            add(row, start ^ space_id, spaces[space_id].cache_salt)

    def _hide(self, row: int, key: ObjectKey, is_evicted: bool) -> None:
        """Held to removing: its bytes stay counted as used until the backend has let go of them."""
        size = self._sizes[row]
        self._table.remove(row)
        self._policy.remove(row, is_evicted)
        self._leases.pop(row, None)
        left = self._salt_bytes.get(key.cache_salt, 0) - size
        if left:
            self._salt_bytes[key.cache_salt] = left
        else:
            self._salt_bytes.pop(key.cache_salt, None)
        self._removing[key] = size
        self._removing_bytes += size

    def _end_removing(self, key: ObjectKey) -> int:
        """The size of an object that is not being removed any more."""
        size = self._removing.pop(key)
        self._removing_bytes -= size
        return size

    def _hide_victims(self, num_bytes: int, num_objects_max: int, tenant: str | None) -> list[tuple[ObjectKey, int]]:
        hidden: list[tuple[ObjectKey, int]] = []
        victims = self._policy.victims(tenant)
        while num_bytes > 0 and len(hidden) < num_objects_max:
            row = next(victims, None)
            if row is None:
                break
            key, size = self._key(row), self._sizes[row]
            self._hide(row, key, is_evicted=True)
            hidden.append((key, size))
            num_bytes -= size
        return hidden

    def _drop_lease(self, row: int) -> None:
        del self._leases[row]
        self._policy.release(row)
