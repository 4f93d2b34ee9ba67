"""Engine, tiers and their threads as a state machine: what is promised is what was stored, and nothing is left behind.

The oracle is a pure function: the bytes that belong to a digest, a tenant and a rank. Tiers
work in their own threads meanwhile, so every rule may cross with any of their steps. One adapter
fails, rots and hangs as it is told.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache.core.keys import ObjectKey
from lmcache.engine.pool import Pool
from lmcache.errors import BackendError
from lmcache.l1.values import Place
from lmcache.l2.indexed import IndexedL2Adapter
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.registry import parse_adapters
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import split_places
from lmcache.storage.breaker import BreakerConfig
from lmcache.storage.prefetch_controller import PrefetchConfig
from lmcache.storage.tier import TierConfig
from lmcache.storage.tier_life import TierState
from tests.conftest import new_pool_folder
from tests.engine.conftest import CHUNK_SIZE, slots_of
from tests.engine.tiered import MEMORY, tiered_engines, wait_until

NUM_RANKS = 2
UNITS = 24
CHUNKS = 6
SCHEDULER = 100
REQUEST = st.sampled_from(["a", "b", "c"])
REQUESTS = st.lists(REQUEST, min_size=1, max_size=3)
SALT = st.sampled_from(["", "tenant"])
LENGTH = st.integers(1, CHUNKS)
BREAKER = BreakerConfig(pause_s=0.01, pause_s_max=0.05)
WAIT_S = st.sampled_from([0.0, 0.02, 5.0])


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An error that is kept as the argument of a log record holds on to the pool that it was raised over."""
    with caplog.at_level(logging.CRITICAL, logger="lmcache.storage"):
        yield


def digests_of(root: bytes, num_chunks: int) -> list[bytes]:
    return [hashlib.sha256(root + bytes([number])).digest() for number in range(num_chunks)]


def content(digest: bytes, salt: str, rank: int, length: int) -> bytes:
    return (hashlib.sha256(digest + salt.encode() + bytes([rank])).digest() * (length // 32 + 1))[:length]


class Faults:
    """What an adapter's backend does: as it should, nothing for a while, errors, or rot."""

    def __init__(self, adapter: MockL2Adapter) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails: set[str] = set()
        self.adapter = adapter
        for name in ("lookup", "_read", "_write", "_remove"):
            setattr(adapter, name, functools.partial(self._call, name, getattr(adapter, name)))

    def _call(self, name: str, call: Callable[..., object], *args: object) -> object:
        self.go_on.wait(30)
        if name in self.fails:
            raise BackendError(f"{name} failed on purpose")
        done = call(*args)
        self.go_on.wait(30)
        return done

    def rot(self, number: int) -> None:
        keys = sorted(self.adapter._objects, key=str)
        if keys:
            key = keys[number % len(keys)]
            torn = self.adapter._objects.get(key, b"?")
            self.adapter._objects[key] = torn[:-1] + bytes([torn[-1] ^ 1])


@dataclass
class Asked:
    """A lookup: what it asked for and where, and its reply when that is there."""

    pool: Pool
    digests: list[bytes]
    salt: str
    replies: list[m.Reply] = field(default_factory=list)
    is_called_off: bool = False
    is_forced: bool = False  # somebody cleared what it holds, locked or not
    num_kept: int = CHUNKS


class TiersMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["default", "retain", "first"]), store_policy=st.sampled_from(["default", "skip_l1"])
    )
    def open(self, policy: str, store_policy: str) -> None:
        self.stack = ExitStack()
        open_ = self.stack.enter_context(tiered_engines(new_pool_folder()))
        self.tiered = open_(
            MEMORY, MEMORY, units=UNITS, world_size=NUM_RANKS, prefetch_policy=policy, store_policy=store_policy,
            prefetch=PrefetchConfig(max_in_flight=2), tier=TierConfig(breaker=BREAKER), drain_timeout_s=5.0,
        )  # fmt: skip
        self.engine = self.tiered.engine
        self.faults: dict[int, Faults] = {}
        self._make_faulty(0)
        self.current: dict[str, Asked] = {}
        self.all_asked: list[Asked] = []
        self.pools = [self.engine.pool]
        self.adapters = [self._adapter(tier.index) for tier in self.engine.storage.tiers()]
        self.num_batches = 0
        self.num_epochs = 0

    def _adapter(self, index: int) -> IndexedL2Adapter:
        adapter = next(tier.adapter for tier in self.engine.storage.tiers() if tier.index == index)
        assert isinstance(adapter, IndexedL2Adapter)
        return adapter

    def _make_faulty(self, index: int) -> None:
        adapter = self._adapter(index)
        assert isinstance(adapter, MockL2Adapter)
        self.faults[index] = Faults(adapter)

    @property
    def faulty(self) -> Faults:
        return self.faults[max(self.faults)]

    # Workers

    @rule(num_chunks=LENGTH, first=st.integers(0, CHUNKS - 1), salt=SALT, is_given_up=st.booleans())
    def store(self, num_chunks: int, first: int, salt: str, is_given_up: bool) -> None:
        for rank in range(NUM_RANKS):
            with self.engine.mutex:
                self._store_rank(rank, digests_of(self.tiered.root(), num_chunks)[first:], salt, is_given_up)

    def _store_rank(self, rank: int, digests: list[bytes], salt: str, is_given_up: bool) -> None:
        uid = 1 + rank
        self.num_batches += 1
        reserved = self.tiered.reserve(digests, self.num_batches, uid, salt)
        granted = [
            digest
            for digest, status in zip(digests, reserved.statuses, strict=True)
            if status == m.ReserveStatus.RESERVED
        ]
        for digest, (_, _, offset, length) in zip(granted, split_places(reserved.places), strict=True):
            written = b"half" if is_given_up else content(digest, salt, rank, length)
            self.engine.pool.view(offset, len(written))[:] = written
        if is_given_up:
            self.tiered.abort(self.num_batches, uid)
        elif granted:
            stores, client = self.engine.stores, self.tiered.client(uid)
            stores.commit(self.engine.pool, client, self.num_batches, slots_of(reserved))

    @rule(salt=SALT)
    def other_prompts_need_the_room(self, salt: str) -> None:
        self.num_epochs += 1
        root = b"other" + self.num_epochs.to_bytes(4, "big")
        with self.engine.mutex:
            for rank in range(NUM_RANKS):
                self._store_rank(rank, digests_of(root, UNITS // 3), salt, False)

    @rule(rank=st.integers(0, NUM_RANKS - 1))
    def a_worker_dies_and_another_takes_its_place(self, rank: int) -> None:
        with self.engine.mutex:
            self.num_batches += 1
            self.tiered.reserve(digests_of(b"unfinished", 2), self.num_batches, 1 + rank)
            self.engine.management._bury(self.engine.pool, 1 + rank)
            assert not self.tiered.root(2 - rank), "nobody finds anything meanwhile"
            self.tiered.join(NUM_RANKS)

    # The scheduler

    def _leave_to_l2(self, num_chunks: int, salt: str) -> None:
        """As far as the adapters are up to it: what most lookups are about."""
        self.store(num_chunks, 0, salt, False)
        self.all_is_quiet_for_a_while()
        self.clear(False)

    @rule(requests=REQUESTS, num_chunks=LENGTH, salt=SALT, wait_s=WAIT_S)
    def a_prompt_is_asked_for_again(self, requests: list[str], num_chunks: int, salt: str, wait_s: float) -> None:
        self._leave_to_l2(num_chunks, salt)
        for request in requests:
            self.lookup(request, num_chunks, salt, wait_s)

    @rule(request=REQUEST, num_chunks=LENGTH, salt=SALT, is_in_l2=st.booleans())
    def hint(self, request: str, num_chunks: int, salt: str, is_in_l2: bool) -> None:
        if is_in_l2:
            self._leave_to_l2(num_chunks, salt)
        with self.engine.mutex:
            self.tiered.lookup(digests_of(self.tiered.root(), num_chunks), request, lock=False, salt=salt)

    @rule(request=REQUEST, num_chunks=LENGTH, salt=SALT, wait_s=WAIT_S)
    def lookup(self, request: str, num_chunks: int, salt: str, wait_s: float) -> None:
        with self.engine.mutex:
            self._call_off(request)
            digests = digests_of(self.tiered.root(), num_chunks)
            asked = Asked(self.engine.pool, digests, salt)
            message = m.Lookup(request, salt, b"".join(digests), wait_s)

            def answer(make_reply: Callable[[], m.Reply]) -> None:
                with self.engine.mutex:
                    asked.replies.append(make_reply())

            found = self.engine.lookups.lookup(self.engine.pool, self.tiered.client(SCHEDULER), message, answer)
            if found is not None:
                asked.replies.append(found)
            self.current[request] = asked
            self.all_asked.append(asked)

    def _call_off(self, request: str) -> None:
        """Under the mutex: a reply that is not there now must be an empty one."""
        asked = self.current.pop(request, None)
        if asked is not None and not asked.replies:
            asked.is_called_off = True

    @rule(request=REQUEST, num_chunks=st.integers(0, 3))
    def release(self, request: str, num_chunks: int) -> None:
        with self.engine.mutex:
            asked = self.current.get(request)
            if asked is not None and asked.replies:
                self.tiered.release(request, num_chunks)
                asked.num_kept = min(asked.num_kept, num_chunks)

    @rule(request=REQUEST)
    def end(self, request: str) -> None:
        with self.engine.mutex:
            self._call_off(request)
            self.tiered.end(request)

    @rule()
    def the_engine_is_reset(self) -> None:
        self.num_epochs += 1
        with self.engine.mutex:
            for request in list(self.current):
                self._call_off(request)
                self.tiered.end(request)
            epoch = self.num_epochs.to_bytes(4, "big")
            client = self.tiered.client(SCHEDULER)
            self.engine.management.reset_engine(self.engine.pool, client, epoch, CHUNK_SIZE)

    # Operators and accidents

    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        with self.engine.mutex:
            for asked in self.current.values():
                asked.is_forced = asked.is_forced or force
            self.engine.clear(force)

    @rule(
        is_hanging=st.booleans(), fails=st.sets(st.sampled_from(["lookup", "_read", "_write", "_remove"]), max_size=1)
    )
    def the_backend_changes_its_mood(self, is_hanging: bool, fails: set[str]) -> None:
        self.faulty.fails = fails
        (self.faulty.go_on.clear if is_hanging else self.faulty.go_on.set)()

    @rule(number=st.integers(0, 10))
    def an_object_rots(self, number: int) -> None:
        self.faulty.rot(number)

    @rule(index=st.integers(0, 1))
    def objects_are_deleted(self, index: int) -> None:
        adapter = self.engine.storage.tiers()[index].adapter
        if self.faulty.go_on.is_set() and "_remove" not in self.faulty.fails:
            keys: list[ObjectKey] = adapter.keys_after(0, 4)[0]
            adapter.delete(keys)

    @precondition(lambda self: len(self.faults) < 3)
    @rule()
    def an_adapter_goes_and_another_comes(self) -> None:
        storage = self.engine.storage
        storage.remove_adapter(max(self.faults), drain_timeout_s=0.05)
        index = storage.add_adapter(parse_adapters([MEMORY])[0])
        wait_until(lambda: storage.tiers()[-1].state is TierState.ACTIVE)
        self._make_faulty(index)
        self.adapters.append(self._adapter(index))

    @precondition(lambda self: len(self.pools) < 3)
    @rule()
    def the_pool_is_lost(self) -> None:
        with self.engine.mutex:
            for request in list(self.current):
                self.current.pop(request)
            shutil.rmtree(self.engine.pool.files.folder)
            self.engine.reap_cycle()
            self.engine.pool.wait_until_populated(30)
            self.pools.append(self.engine.pool)
            self.tiered.join(NUM_RANKS)

    @rule()
    def all_is_quiet_for_a_while(self) -> None:
        storage = self.engine.storage
        if all(faults.go_on.is_set() for faults in self.faults.values()):
            wait_until(lambda: not storage.prefetches.num_jobs + storage.stores.num_inflight)

    # What must hold

    @invariant()
    def tables_agree(self) -> None:
        for pool in self.pools:
            pool.l1.check_integrity()
        for adapter in self.adapters:
            adapter.index.check_integrity()

    @invariant()
    def promises_are_kept(self) -> None:
        """Under the mutex nobody answers meanwhile."""
        with self.engine.mutex:
            for asked in self.current.values():
                if asked.replies:
                    self._check_promise(asked)

    def _check_promise(self, asked: Asked) -> None:
        (found,) = asked.replies
        assert isinstance(found, m.Found), found
        places = split_places(found.places)
        assert len(places) == found.num_chunks * NUM_RANKS <= len(asked.digests) * NUM_RANKS
        for number, (slot, word, offset, length) in enumerate(places[: asked.num_kept * NUM_RANKS]):
            chunk, rank = divmod(number, NUM_RANKS)
            is_there = asked.pool.l1.holds(Place(slot, word))
            assert is_there or asked.is_forced, "what was promised is locked"
            if is_there:
                expected = content(asked.digests[chunk], asked.salt, rank, length)
                assert bytes(asked.pool.view(offset, length)) == expected, f"chunk {chunk} of rank {rank}"

    @invariant()
    def what_was_called_off_promises_nothing(self) -> None:
        for asked in self.all_asked:
            assert len(asked.replies) <= 1
            if asked.is_called_off and asked.replies:
                assert isinstance(asked.replies[0], m.Failure) or not asked.replies[0].num_chunks

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            self._end_all()
        finally:
            for faults in self.faults.values():
                faults.go_on.set()
            self.stack.close()

    def _end_all(self) -> None:
        for faults in self.faults.values():
            faults.fails = set()
            faults.go_on.set()
        wait_until(lambda: all(asked.replies for asked in self.all_asked))
        self.promises_are_kept()
        self.what_was_called_off_promises_nothing()
        for request in ("a", "b", "c"):
            with self.engine.mutex:
                self._call_off(request)
                self.tiered.end(request)
        storage, prefetches = self.engine.storage, self.engine.storage.prefetches
        wait_until(lambda: prefetches.is_at_rest)
        wait_until(lambda: not storage.stores.num_inflight)
        assert not self.engine.prefetches._outstanding
        assert len(self.engine.sessions) == 0
        for pool in self.pools:
            for name in ("read_locked_count", "write_locked_count", "temporary_count", "quarantined_count"):
                wait_until(lambda pool=pool, name=name: not pool.l1.report()[name])
        for tier in storage.tiers():
            index = self._adapter(tier.index).index
            wait_until(lambda index=index: index.num_leased == 0)
        self.tables_agree()
        wait_until(storage.close)  # False: some thread is stuck
        assert all(tier.inflight() == (0, 0, 0) for tier in storage.tiers())


TiersMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTiersMachine = TiersMachine.TestCase
