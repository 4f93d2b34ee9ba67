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
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from lmcache.core.keys import ObjectKey
from lmcache.errors import IntegrityError, KeyFormatError
from lmcache.eviction.base import EvictionPolicy
from lmcache.l2.digest_table import DIGEST_BYTES
from lmcache.l2.key_claims import KeyClaims
from lmcache.l2.object_batch import ObjectBatch
from lmcache.l2.object_rows import ObjectRows
from lmcache.l2.row_leases import RowLeases
from lmcache.quota.tenant_bytes import TenantBytes

_SCAN_ROWS = 4096
_BATCH_ROWS = 65536
# Hiding one object takes some 10 microseconds, and a lookup may wait for the mutex.
_HIDE_OBJECTS = 256


class ObjectIndex:
    """Thread-safe. `capacity_bytes` 0: unlimited. Leases end by themselves after `lease_ttl_s`."""

    def __init__(
        self, policy: EvictionPolicy, capacity_bytes: int, lease_ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._mutex = threading.Lock()
        self._rows = ObjectRows()
        self._leases = RowLeases(policy, lease_ttl_s, clock)
        self._claims = KeyClaims()
        self._used_bytes = 0
        self._salt_bytes = TenantBytes()
        self.capacity_bytes = capacity_bytes

    def __len__(self) -> int:
        return len(self._rows)

    # Finding

    def lease(self, keys: Sequence[ObjectKey]) -> list[bool]:
        """Which keys are held; each that is gets a lease more, and counts as used (the first one most recently)."""
        with self._mutex:
            rows = [self._rows.find(key) for key in keys]
            for row in rows:
                if row >= 0:
                    self._leases.add(row)
            self._policy.touch(row for row in reversed(rows) if row >= 0)
            return [row >= 0 for row in rows]

    def release(self, keys: Iterable[ObjectKey]) -> None:
        with self._mutex:
            for key in reversed(list(keys)):
                self._leases.release(self._rows.find(key))

    def expire_leases(self) -> int:
        """End leases whose time is up; how many objects became evictable."""
        with self._mutex:
            return self._leases.expire()

    def contains(self, key: ObjectKey) -> bool:
        with self._mutex:
            return self._rows.find(key) >= 0

    # Storing

    def begin_store(self, key: ObjectKey, num_bytes: int) -> bool:
        """Claim a key for a store of that many bytes. False: it is held, or somebody works on it."""
        with self._mutex:
            if len(key.chunk_hash) != DIGEST_BYTES:
                raise KeyFormatError(f"a stored chunk_hash has {DIGEST_BYTES} bytes (got {len(key.chunk_hash)})")
            if self._rows.find(key) >= 0 or key in self._claims:
                return False
            self._claims.begin_store(key, num_bytes)
            return True

    def commit(self, key: ObjectKey, num_bytes: int) -> None:
        """The object is on the backend, with that many bytes."""
        with self._mutex:
            self._claims.end_store(key)
            self._add(key, num_bytes)

    def abort(self, key: ObjectKey) -> None:
        with self._mutex:
            self._claims.end_store(key)
            self._claims.note_left(key)

    def adopt(self, key: ObjectKey, num_bytes: int) -> bool:
        """An object that was found on the backend. False: it is known, or being worked on."""
        with self._mutex:
            return self._adopt(key, num_bytes)

    def begin_probe(self, keys: Iterable[ObjectKey]) -> None:
        """The backend will be asked for these keys. An answer that a removal overtakes is not believed."""
        with self._mutex:
            self._claims.begin_probe(keys)

    def end_probe(
        self, keys: Sequence[ObjectKey], sizes: Sequence[int], held: Collection[ObjectKey] = ()
    ) -> list[tuple[ObjectKey, int]]:
        """Adopt what was found; a size of -1: absent. Of the keys that were `held` when the probe began, those
        absent are forgotten: they are answered, with their sizes."""
        forgotten = []
        with self._mutex:
            for key, size in zip(keys, sizes, strict=True):
                if self._claims.has_left(key):
                    continue
                if size >= 0:
                    self._adopt(key, size)
                elif key in held and (known_bytes := self._forget(key)) >= 0:
                    forgotten.append((key, known_bytes))
            self._claims.end_probe(keys)
        return forgotten

    def adopt_all(self, batch: ObjectBatch) -> None:
        """Take up everything that was found on the backend; the batch is used up. Only an index that never
        held anything can."""
        with self._mutex:
            if self._rows.num_rows or self._claims.is_storing:
                raise IntegrityError("an index takes up a batch before anything else")
            self._rows.fill(batch)
            self._used_bytes = sum(batch.sizes)
            # Doubles hold any sum of bytes below 8 PiB exactly.
            sums = np.bincount(batch.space_ids, batch.sizes, len(batch.spaces)) if len(batch) else ()
            for space, num_bytes in zip(batch.spaces, sums, strict=True):
                self._salt_bytes.count(space.cache_salt, int(num_bytes))
            order = np.argsort(np.asarray(batch.stamps), kind="stable")
            for start in range(0, len(order), _BATCH_ROWS):
                for row in self._rows.columns(order[start : start + _BATCH_ROWS].tolist()):
                    self._policy.add(*row)

    def missing_bytes(self) -> int:
        """How much must go before what is being stored fits (0 or less: it fits). What is going counts as gone."""
        with self._mutex:
            if not self.capacity_bytes:
                return 0
            return self._used_bytes - self._claims.removing_bytes + self._claims.storing_bytes - self.capacity_bytes

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
                row = self._rows.find(key)
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
                sizes.append(self._claims.end_removal(key))
                self._claims.note_left(key)
            self._used_bytes -= sum(sizes)
            return sizes

    def restore(self, keys: Iterable[ObjectKey]) -> None:
        """These hidden objects could not be removed: they are held as before."""
        with self._mutex:
            for key in keys:
                size = self._claims.end_removal(key)
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
            row = self._rows.find(key)
            return self._rows.size(row) if row >= 0 else -1

    def leased_keys(self) -> list[ObjectKey]:
        with self._mutex:
            return [self._rows.key(row) for row in self._leases]

    @property
    def num_leased(self) -> int:
        return len(self._leases)

    def page(self, cursor: int, num_keys_max: int, model_name: str | None) -> tuple[list[tuple[ObjectKey, int]], int]:
        """Entries from row `cursor` on, and the cursor that follows; 0: no more. The mutex is let go in between."""
        found: list[tuple[ObjectKey, int]] = []
        row = cursor
        while True:
            with self._mutex:
                stop = min(row + _SCAN_ROWS, self._rows.num_rows)
                for used in self._rows.rows_of_model(row, stop, model_name):
                    if len(found) == num_keys_max:
                        return found, used
                    found.append((self._rows.key(used), self._rows.size(used)))
                row = stop
                if row >= self._rows.num_rows:
                    return found, 0

    def keys_starting_with(self, first_byte: int) -> list[ObjectKey]:
        """The keys held whose hash starts with that byte."""
        with self._mutex:
            found = self._rows.keys_starting_with(first_byte)
        return [space.key(digest) for space, digest in found]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless keys, sizes, leases, usage and policy agree. Slow: for tests."""
        with self._mutex:
            self._rows.check_integrity()
            self._claims.check_integrity()
            rows = [row for row in range(self._rows.num_rows) if self._rows.is_used(row)]
            usage = TenantBytes()
            for row in rows:
                usage.count(self._rows.space(row).cache_salt, self._rows.size(row))
            if usage != self._salt_bytes or sum(usage.values()) + self._claims.removing_bytes != self._used_bytes:
                raise IntegrityError("bytes per tenant and the objects' sizes do not add up")
            if len(self._policy) != len(rows) or not set(self._leases) <= set(rows):
                raise IntegrityError("policy, leases and objects do not add up")

    # Under the mutex

    def _add(self, key: ObjectKey, num_bytes: int) -> None:
        row = self._rows.add(key, num_bytes)
        self._used_bytes += num_bytes
        self._salt_bytes.count(key.cache_salt, num_bytes)
        self._policy.add(row, self._rows.policy_hash(row), key.cache_salt)

    def _adopt(self, key: ObjectKey, num_bytes: int) -> bool:
        is_new = self._rows.find(key) < 0 and key not in self._claims
        if is_new and len(key.chunk_hash) == DIGEST_BYTES:
            self._add(key, num_bytes)
        return is_new

    def _forget(self, key: ObjectKey) -> int:
        row = self._rows.find(key)
        if row < 0:
            return -1
        size = self._rows.size(row)
        self._hide(row, key, is_evicted=False)
        self._used_bytes -= self._claims.end_removal(key)
        self._claims.note_left(key)
        return size

    def _hide(self, row: int, key: ObjectKey, is_evicted: bool) -> None:
        """Held to removing: its bytes stay counted as used until the backend has let go of them."""
        size = self._rows.size(row)
        self._rows.remove(row)
        self._policy.remove(row, is_evicted)
        self._leases.forget(row)
        self._salt_bytes.count(key.cache_salt, -size)
        self._claims.begin_removal(key, size)

    def _hide_victims(self, num_bytes: int, num_objects_max: int, tenant: str | None) -> list[tuple[ObjectKey, int]]:
        hidden: list[tuple[ObjectKey, int]] = []
        victims = self._policy.victims(tenant)
        while num_bytes > 0 and len(hidden) < num_objects_max:
            row = next(victims, None)
            if row is None:
                break
            key, size = self._rows.key(row), self._rows.size(row)
            self._hide(row, key, is_evicted=True)
            hidden.append((key, size))
            num_bytes -= size
        return hidden
