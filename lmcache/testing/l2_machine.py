"""One stateful model of an L2 adapter: any order of calls, tampering and restarts, against a dict.

    TestMachine = l2_machine(MemoryBackend).TestCase

The model knows no eviction order: what the adapter says it removed is removed there too, and must
not have been leased. Sizes come from the events, and must add up to the usage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError, ObjectMissingError
from lmcache.l2.base import StoreStatus
from lmcache.testing.l2_backend import LEASE_TTL_S, Bench, L2Backend, make_data, make_key

_NUM_KEYS = 5
_NUM_BYTES = 2048
_KEYS = [make_key(number, cache_salt=["", "tenant"][number % 2]) for number in range(_NUM_KEYS)]
_ROOM_OBJECTS = 3
_CAPACITIES = [0, _ROOM_OBJECTS]
# Keys by number: a failing example is short to read.
_number = st.integers(0, _NUM_KEYS - 1)
_numbers = st.lists(_number, min_size=1, max_size=_NUM_KEYS, unique=True)


class _Health(Enum):
    WHOLE = "whole"
    DAMAGED = "damaged"  # changed behind the adapter's back
    VANISHED = "vanished"  # removed behind its back; it may have noticed or not


@dataclass(slots=True)
class _Held:
    data: bytes
    size: int
    health: _Health = _Health.WHOLE
    num_leases: int = 0
    lease_ends_s: float = 0.0


class L2Machine(RuleBasedStateMachine):
    """Subclassed by `l2_machine` with a backend."""

    make_backend: Callable[[], L2Backend]

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(type(self).make_backend())
        self.held: dict[ObjectKey, _Held] = {}
        self.object_bytes = self.bench.object_bytes(_KEYS[1], make_data(0, _NUM_BYTES))
        self.capacity_bytes = 0
        self._told()

    def _told(self) -> list[tuple[ObjectKey, int]]:
        """What the adapter told to be deleted since the last call, forgotten."""
        deleted = list(self.bench.events.deleted)
        for told in (self.bench.events.stored, self.bench.events.deleted, self.bench.events.evicted):
            told.clear()
        return deleted

    def _take_events(self) -> list[ObjectKey]:
        """Remove from the model what the adapter told to be gone."""
        evicted = list(self.bench.events.evicted)
        assert not any(self._is_leased(key) for key in evicted), "a leased object was evicted"
        gone = self._told()
        for key, size in gone:
            assert self.held.pop(key).size == size
        return [key for key, _ in gone]

    def _is_leased(self, key: ObjectKey) -> bool:
        return key in self.held and self.held[key].num_leases > 0

    def _pick(self, number: int) -> ObjectKey:
        """One of the keys held, or one that is absent: most rules have little to say about absent ones."""
        keys = [*self.held, *[key for key in _KEYS if key not in self.held][:1]]
        return keys[number % len(keys)]

    @initialize()
    def fill(self) -> None:
        self.store(list(range(_NUM_KEYS)), 0)

    @rule(numbers=_numbers, seed=st.integers(0, 3))
    def store(self, numbers: list[int], seed: int) -> None:
        for number in numbers:
            self._store(_KEYS[number], make_data(seed, _NUM_BYTES))

    def _store(self, key: ObjectKey, data: bytes) -> None:
        before = self.held.get(key)
        status = self.bench.store(key, data)
        stored = list(self.bench.events.stored)
        gone = self._take_events()
        assert not gone or self.capacity_bytes or (before and before.health is _Health.VANISHED)
        if status is StoreStatus.STORED:
            assert key not in self.held, "it was held already"
            assert [stored_key for stored_key, _ in stored] == [key]
            self.held[key] = _Held(data, stored[0][1])
        elif status is StoreStatus.EXISTS:
            assert before is not None
        else:
            assert status is StoreStatus.NO_ROOM
            assert self.capacity_bytes
            assert all(self._is_leased(other) for other in self.held)

    @rule(numbers=_numbers)
    def lookup(self, numbers: list[int]) -> None:
        keys = [_KEYS[number] for number in numbers]
        found = self.bench.adapter.lookup(keys)
        self._take_events()
        assert found == [key in self.held for key in keys]
        for key in keys:
            if key in self.held:
                self.held[key].num_leases += 1
                self.held[key].lease_ends_s = self.bench.clock.now_s + LEASE_TTL_S

    @rule(numbers=_numbers)
    def release(self, numbers: list[int]) -> None:
        keys = [_KEYS[number] for number in numbers]
        self.bench.adapter.release(keys)
        for key in keys:
            if self._is_leased(key):
                self.held[key].num_leases -= 1

    @rule(number=_number)
    def load(self, number: int) -> None:
        key = self._pick(number)
        held = self.held.get(key)
        if held is None or held.health is _Health.VANISHED:
            with pytest.raises(ObjectMissingError):
                self.bench.load(key, _NUM_BYTES)
        elif held.health is _Health.DAMAGED:
            with pytest.raises(CorruptObjectError):
                self.bench.load(key, _NUM_BYTES)
        else:
            assert self.bench.load(key, _NUM_BYTES).data == held.data
        is_lost = held is not None and held.health is not _Health.WHOLE
        assert self._take_events() == ([key] if is_lost else [])

    @rule(number=_number)
    def verify(self, number: int) -> None:
        self._verify(self._pick(number))

    def _verify(self, key: ObjectKey) -> None:
        held = self.held.get(key)
        assert self.bench.adapter.verify(key) == (held is None or held.health is not _Health.DAMAGED)
        is_lost = held is not None and held.health is not _Health.WHOLE
        assert self._take_events() == ([key] if is_lost else [])

    @rule(numbers=_numbers)
    def delete(self, numbers: list[int]) -> None:
        keys = [_KEYS[number] for number in numbers]
        leased = [key for key in keys if self._is_leased(key)]
        absent = [key for key in keys if key not in self.held]
        answer = self.bench.adapter.delete(keys)
        gone = self._take_events()
        assert answer.leased == leased
        assert answer.num_absent == len(absent)
        assert answer.deleted == [key for key in keys if key not in leased and key not in absent]
        assert set(gone) == set(answer.deleted)

    @rule(num_objects=st.integers(1, 2))
    def evict(self, num_objects: int) -> None:
        sizes = {key: held.size for key, held in self.held.items()}
        num_free = sum(not self._is_leased(key) for key in self.held)
        count, num_bytes = self.bench.adapter.evict(1 << 40, num_objects)
        gone = self._take_events()
        assert count == len(gone) == min(num_objects, num_free)
        assert num_bytes == sum(sizes[key] for key in gone)

    @rule(seconds=st.sampled_from([1.0, LEASE_TTL_S / 2, LEASE_TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.now_s += seconds
        ended = [held for key, held in self.held.items() if self._is_leased(key)]
        ended = [held for held in ended if held.lease_ends_s <= self.bench.clock.now_s]
        assert self.bench.adapter.expire_leases() == len(ended)
        for held in ended:
            held.num_leases = 0

    @rule(number=_number, position=st.integers(-_NUM_BYTES, -1))
    def damage(self, number: int, position: int) -> None:
        key = self._pick(number)
        held = self.held.get(key)
        content = self.bench.backend.content(key)
        if held is None or content is None or held.health is not _Health.WHOLE:
            return
        changed = bytearray(content)
        changed[position] ^= 1
        self.bench.backend.replace(key, bytes(changed))
        held.health = _Health.DAMAGED

    @rule(number=_number)
    def vanish(self, number: int) -> None:
        key = self._pick(number)
        if key in self.held and self.held[key].health is not _Health.VANISHED:
            self.bench.backend.remove(key)
            self.held[key].health = _Health.VANISHED

    @rule(num_objects=st.sampled_from(_CAPACITIES), is_wanted=st.booleans())
    def reopen(self, num_objects: int, is_wanted: bool) -> None:
        """Damage is found out first: whether a restart notices it is up to the adapter."""
        if not is_wanted:
            return
        for key in [key for key, held in self.held.items() if held.health is not _Health.WHOLE]:
            self._verify(key)
        if not self.bench.backend.respects_capacity or len(self.held) > num_objects:
            num_objects = 0
        self.capacity_bytes = num_objects * self.object_bytes + self.object_bytes // 2 if num_objects else 0
        self.bench.reopen(self.capacity_bytes)
        if not self.bench.backend.survives_restart:
            self.held.clear()
        for held in self.held.values():
            held.num_leases = 0

    @invariant()
    def books_agree(self) -> None:
        self.bench.check()
        usage = self.bench.adapter.usage()
        assert usage.total_bytes_used == sum(held.size for held in self.held.values())
        by_salt: dict[str, int] = {}
        for key, held in self.held.items():
            by_salt[key.cache_salt] = by_salt.get(key.cache_salt, 0) + held.size
        assert dict(usage.bytes_by_cache_salt) == by_salt
        assert self.bench.adapter.num_objects in (len(self.held), -1)

    @invariant()
    def backend_agrees(self) -> None:
        present = [key for key, held in self.held.items() if held.health is not _Health.VANISHED]
        assert self.bench.backend.num_objects() == len(present)

    @invariant()
    def listing_agrees(self) -> None:
        if not self.bench.adapter.supports_listing:
            return
        listed = {
            key: held.size
            for key, held in self.held.items()
            if held.health is not _Health.VANISHED or not self.bench.backend.listing_asks_the_backend
        }
        assert dict(self.bench.listed(page_size=3)) == listed

    def teardown(self) -> None:
        self.bench.adapter.close()
        self.bench.backend.close()


def l2_machine(make_backend: Callable[[], L2Backend]) -> type[L2Machine]:
    """The machine on one kind of backend. `make_backend` makes a fresh one for every example."""
    return type("L2MachineOnBackend", (L2Machine,), {"make_backend": staticmethod(make_backend)})
