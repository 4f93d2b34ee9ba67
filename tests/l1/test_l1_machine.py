"""The L1 manager as a state machine against a dict: every answer, every eviction, every tenant's bytes.

All objects have one length here, so which of them must go is known exactly. Restarts build
the manager again over the same files, as a server does after it was killed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache.eviction import make_policy
from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.recovery import RecoveryReport
from lmcache.l1.slots import SlotTable
from lmcache.l1.state import L1State
from lmcache.l1.values import LockBudget, Place
from lmcache.memory.allocator import Allocator
from lmcache.memory.names import NamesTable
from lmcache.memory.pool_files import PAGE_BYTES, Geometry, PoolFiles
from lmcache.memory.records import RecordTable, ready_word
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus
from lmcache.quota.manager import QuotaManager
from tests.conftest import FakeClock, new_pool_folder

NUM_UNITS = 7
UNIT_BYTES = 4096
LENGTH = 4000
WRITE_TTL_S = 600.0
ROOTS = [bytes([number]) * 32 for number in (1, 2)]
KEYS = [NamespaceKey("m", ROOTS[0], ""), NamespaceKey("m", ROOTS[0], "tenant"), NamespaceKey("m", ROOTS[1], "tenant")]
RANKS: list[RankGroup] = [(0x02000200, 0), (0x02010201, 0)]
DIGESTS = [bytes([number]) * 32 for number in range(4)]
OWNERS = (11, 12)

Name = tuple[NamespaceKey, RankGroup, bytes]

KEY = st.sampled_from(KEYS)
RANK = st.sampled_from(RANKS)
OWNER = st.sampled_from(OWNERS)
PREFIX = st.integers(1, len(DIGESTS)).map(lambda count: DIGESTS[:count])


@dataclass
class Object:
    """A ready object of the model. `tick`: its last use that a restart can still know."""

    name: Name
    locks: int = 0
    tick: int = 0


@dataclass
class Write:
    """A slot its owner has not settled. `name` is None once the write was hidden."""

    name: Name | None
    owner: int
    deadline_s: float


class L1Machine(RuleBasedStateMachine):
    """The model: ready objects and unsettled writes by (slot, generation), recency as a list of places."""

    policy_name = "LRU"

    @initialize()
    def open(self) -> None:
        self.clock = FakeClock()
        self.folder = new_pool_folder()
        self.quotas = QuotaManager()
        self.ready: dict[Place, Object] = {}
        self.writes: dict[Place, Write] = {}
        self.recency: list[Place] = []
        self.ticks = itertools.count(1)
        self.removed: Counter[tuple[bytes, bytes, str]] = Counter()
        self.handles: list[list[Place]] = []
        self.locks: list[list[Place]] = []
        self.reopen()

    def reopen(self) -> None:
        geometry = Geometry(NUM_UNITS * UNIT_BYTES, 16)
        self.files = PoolFiles(self.folder, geometry)
        self.records = RecordTable(self.files.index, PAGE_BYTES, geometry.num_records)
        self.names = NamesTable(self.folder / "names")
        self.policy = make_policy(self.policy_name)
        state = L1State(SlotTable(self.records, Allocator()), self.names, self.policy)
        self.l1 = L1Manager(state, WRITE_TTL_S, self.clock, quotas=self.quotas)
        self.recovery = self.l1.recover()
        left_bytes = geometry.pool_bytes - self.l1.memory_bytes()[1]
        if left_bytes:
            self.l1.grow(left_bytes)

    def close(self, keep: bool) -> None:
        self.names.close()
        self.records.close()
        self.files.close(keep)

    # The model

    def find(self, name: Name) -> Place | None:
        return next((place for place, found in self.ready.items() if found.name == name), None)

    def drop(self, place: Place) -> None:
        key, _, digest = self.ready.pop(place).name
        if place in self.recency:
            self.recency.remove(place)
        self.removed[key.root, digest, key.cache_salt] += 1

    def hide(self, place: Place) -> None:
        self.writes[place].name = None

    def use(self, places: list[Place]) -> None:
        for place in places:
            self.ready[place].tick = next(self.ticks)
            if not self.ready[place].locks:
                self.renew(place)

    def renew(self, place: Place) -> None:
        if place in self.recency:
            self.recency.remove(place)
        self.recency.append(place)

    def make_room(self, salt: str) -> tuple[bool, int]:
        """Whether there is room for one more of a tenant's, and how many had to go for it."""
        num_evicted = 0
        while len(self.ready) + len(self.writes) >= NUM_UNITS:
            victim = self.victim_for(salt)
            if victim is None:
                return False, num_evicted
            num_evicted += self.evict(victim)
        return True, num_evicted

    def victim_for(self, salt: str) -> Place | None:
        return self.recency[0] if self.recency else None

    def evict(self, victim: Place) -> int:
        key, _, digest = self.ready[victim].name
        chunk = [
            place
            for place, found in self.ready.items()
            if (found.name[0], found.name[2]) == (key, digest) and (place == victim or not found.locks)
        ]
        for place in chunk:
            self.drop(place)
        return len(chunk)

    # Writing

    @rule(key=KEY, rank=RANK, owner=OWNER, digests=PREFIX)
    def reserve(self, key: NamespaceKey, rank: RankGroup, owner: int, digests: list[bytes]) -> None:
        self.reserve_places(key, rank, owner, digests)

    def reserve_places(self, key: NamespaceKey, rank: RankGroup, owner: int, digests: list[bytes]) -> list[Place]:
        result = self.l1.reserve(key, rank, owner, digests, LENGTH)
        rows = iter(split_places(self.l1.places(result.slots)))
        handle, num_evicted = [], 0
        for digest, status in zip(digests, result.statuses, strict=True):
            name = (key, rank, digest)
            if self.find(name) is not None:
                assert status == ReserveStatus.EXISTS
            elif name in [write.name for write in self.writes.values()]:
                assert status == ReserveStatus.BUSY
            else:
                has_room, num_gone = self.make_room(key.cache_salt)
                num_evicted += num_gone
                assert status == (ReserveStatus.RESERVED if has_room else ReserveStatus.NO_ROOM)
                if has_room:
                    slot, word, _, length = next(rows)
                    assert length == LENGTH
                    self.writes[Place(slot, word)] = Write(name, owner, self.clock.now_s + WRITE_TTL_S)
                    handle.append(Place(slot, word))
        assert next(rows, None) is None
        assert result.num_evicted == num_evicted
        if handle:
            self.handles.append(handle)
        return handle

    @rule(key=KEY, num_ranks=st.sampled_from([1, 2]), digests=PREFIX)
    def store(self, key: NamespaceKey, num_ranks: int, digests: list[bytes]) -> None:
        """The common case: what was reserved is committed at once."""
        for rank, owner in list(zip(RANKS, OWNERS, strict=True))[:num_ranks]:
            self.commit_places(owner, self.reserve_places(key, rank, owner, digests))

    def pick(self, data: st.DataObject) -> list[Place]:
        """Some places that were once handed out to a writer, settled meanwhile or not."""
        handle = data.draw(st.sampled_from(self.handles))
        return [place for place in handle if data.draw(st.booleans())]

    @precondition(lambda self: self.handles)
    @rule(owner=OWNER, data=st.data())
    def commit(self, owner: int, data: st.DataObject) -> None:
        self.commit_places(owner, self.pick(data))

    def commit_places(self, owner: int, chosen: list[Place]) -> None:
        accepted = self.l1.commit(owner, chosen)
        expected = []
        for place in chosen:
            write = self.writes.get(place)
            if write is None or write.owner != owner:
                continue
            del self.writes[place]
            if write.name is not None:
                self.ready[Place(place.slot, ready_word(place.slot_word))] = Object(write.name)
                expected.append(Place(place.slot, ready_word(place.slot_word)))
        assert accepted == [place.slot for place in expected]
        self.use(expected[::-1])

    @precondition(lambda self: self.handles)
    @rule(owner=OWNER, data=st.data())
    def abort(self, owner: int, data: st.DataObject) -> None:
        chosen = self.pick(data)
        own = [place for place in chosen if place in self.writes and self.writes[place].owner == owner]
        assert self.l1.abort(owner, chosen) == len(own)
        for place in own:
            del self.writes[place]

    @rule(owner=OWNER, data=st.data())
    def abort_owner(self, owner: int, data: st.DataObject) -> None:
        own = [place for place, write in self.writes.items() if write.owner == owner]
        still_writing = [place for place in own if data.draw(st.booleans())]
        assert self.l1.abort_owner(owner, still_writing) == len(own) - len(still_writing)
        for place in set(own) - set(still_writing):
            del self.writes[place]

    @rule(seconds=st.sampled_from([1.0, WRITE_TTL_S / 2, WRITE_TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        late = [p for p, write in self.writes.items() if write.name and write.deadline_s <= self.clock.now_s]
        assert self.l1.quarantine_expired() == len(late)
        for place in late:
            self.hide(place)

    @rule(root=st.sampled_from(ROOTS), owners=st.sets(OWNER))
    def quarantine_writes(self, root: bytes, owners: set[int]) -> None:
        doubtful = [
            place
            for place, write in self.writes.items()
            if write.name and write.name[0].root == root and write.owner in owners
        ]
        assert self.l1.quarantine_writes(root, owners) == len(doubtful)
        for place in doubtful:
            self.hide(place)

    # Reading

    def prefix(self, key: NamespaceKey, ranks: list[RankGroup], digests: list[bytes]) -> list[Place]:
        places: list[Place] = []
        for digest in digests:
            row = [self.find((key, rank, digest)) for rank in ranks]
            if None in row:
                break
            places += [place for place in row if place is not None]
        return places

    @rule(key=KEY, num_ranks=st.sampled_from([1, 2]), digests=PREFIX, chunks_max=st.none() | st.integers(0, 5))
    def lookup(self, key: NamespaceKey, num_ranks: int, digests: list[bytes], chunks_max: int | None) -> None:
        ranks = RANKS[:num_ranks]
        budget = None if chunks_max is None else LockBudget(chunks_max * num_ranks * LENGTH + LENGTH // 2)
        slots, blob = self.l1.lookup(key, ranks, digests, budget)
        places = [Place(slot, word) for slot, word, _, _ in split_places(blob)]
        expected = self.prefix(key, ranks, digests)
        if chunks_max is not None:
            expected = expected[: chunks_max * num_ranks]
            for place in expected:
                self.ready[place].locks += 1
                if place in self.recency:
                    self.recency.remove(place)
            if expected:
                self.locks.append(expected)
        assert places == expected
        assert slots == [place.slot for place in expected]
        self.use(expected[::-1])

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        places = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.l1.unlock(places)
        for place in reversed(places):
            found = self.ready.get(place)
            if found is not None and found.locks:
                found.locks -= 1
                if not found.locks:
                    self.renew(place)

    # Removing

    @rule(force=st.sampled_from([True, False, None]))
    def clear(self, force: bool | None) -> None:
        if force is None:
            return  # clearing less often leaves more to be met by the other rules
        doomed = [place for place, found in self.ready.items() if force or not found.locks]
        assert self.l1.clear(force) == len(doomed)
        for place in doomed:
            self.drop(place)
        for place in self.writes if force else ():
            self.hide(place)

    @rule(root=st.sampled_from(ROOTS))
    def delete_root(self, root: bytes) -> None:
        doomed = [place for place, found in self.ready.items() if found.name[0].root == root and not found.locks]
        assert self.l1.delete_root(root, 1000) == len(doomed)
        for place in doomed:
            self.drop(place)

    @rule(units=st.integers(0, NUM_UNITS), num_objects_max=st.integers(1, 8))
    def evict_to(self, units: int, num_objects_max: int) -> None:
        num_evicted = 0
        while num_evicted < num_objects_max and len(self.ready) + len(self.writes) > units and self.recency:
            num_evicted += self.evict(self.recency[0])
        assert self.l1.evict_to(units * UNIT_BYTES, num_objects_max) == num_evicted

    @rule()
    def take_removed(self) -> None:
        found = Counter((event.root, event.digest, event.cache_salt) for event in self.l1.take_removed())
        assert found == self.removed
        self.removed.clear()

    @rule()
    def restart(self) -> None:
        """Ready objects come back in the order of their last use, unlocked; writes come back hidden."""
        self.close(keep=True)
        self.reopen()
        assert self.files.is_adopted
        assert self.recovery == RecoveryReport(len(self.ready), len(self.writes), 0)
        for place in self.writes:
            self.hide(place)
        for found in self.ready.values():
            found.locks = 0
        self.recency = sorted(self.ready, key=lambda place: self.ready[place].tick)
        self.removed.clear()

    # What must hold at any moment

    @invariant()
    def agrees(self) -> None:
        self.l1.check_integrity()
        report = self.l1.report()
        hidden = sum(write.name is None for write in self.writes.values())
        assert report["quarantined_count"] == hidden
        assert report["quarantined_bytes"] == hidden * LENGTH
        assert report["write_locked_count"] == len(self.writes) - hidden
        assert report["read_locked_count"] == sum(found.locks > 0 for found in self.ready.values())
        assert self.l1.memory_bytes() == ((len(self.ready) + len(self.writes)) * UNIT_BYTES, NUM_UNITS * UNIT_BYTES)
        assert list(self.policy.victims()) == [place.slot for place in self.recency]
        assert self.l1.pending_owners() == {write.owner for write in self.writes.values()}

    @invariant()
    def tenants_are_charged_exactly(self) -> None:
        usage = Counter(found.name[0].cache_salt for found in self.ready.values())
        assert self.l1.usage_bytes_by_salt() == {salt: count * LENGTH for salt, count in usage.items()}

    def teardown(self) -> None:
        self.close(keep=False)


L1Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestL1Machine = L1Machine.TestCase
