"""An embedded engine against a plain dict, whatever order its calls and an operator's switches come in."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmcache.embedded.jobs import RetrieveJob, RetrievePart, StoreJob
from lmcache.embedded.layer_transfers import LayerLoad, LayerStore
from lmcache.eviction import make_policy
from lmcache.testing.paged_memory import NUM_LAYERS, digest_of
from tests.conftest import FakeClock, new_pool_folder
from tests.embedded.site import L1_BACKEND, ROOT, Site, blocks_of, config_of, digests_of
from tests.embedded.tiers import REMOTE, held_by, memory

NAMES = "abcdef"
LOOKUPS = ("one", "two", "three")
POOL_CHUNKS = 4
WAIT_S = 20.0
# Where loads and stores layer by layer have their pages.
LOAD_PLACE, STORE_PLACE = 6, 11


def prompts_of(num_chunks_max: int) -> st.SearchStrategy[str]:
    lengths = st.integers(1, num_chunks_max)
    return lengths.flatmap(lambda length: st.permutations(NAMES).map(lambda names: "".join(names[:length])))


prompts = prompts_of(POOL_CHUNKS)


class EngineMachine(RuleBasedStateMachine):
    """`promised`: what each lookup found and nobody has loaded since. `stored`: what may be held in L1. `load` and
    `saving`: what is under way layer by layer; `loading`: that load's chunks, and `is_doomed`: they were taken away."""

    has_tier = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        config = config_of(POOL_CHUNKS, lock_ttl_s=60.0, backends=(memory(),) if self.has_tier else ())
        self.site = Site(new_pool_folder(), config, clock=self.clock)
        self.promised: dict[str, str] = {}
        self.stored: set[str] = set()
        self.frozen_order: tuple[list[bytes], list[bytes]] | None = None
        self.had_temporary = False
        self.load: LayerLoad | None = None
        self.load_id, self.loading, self.is_doomed = "", "", False
        self.saving: tuple[StoreJob, LayerStore] | None = None

    def settle(self) -> None:
        """What is on its way arrives, or is dropped."""
        if self.frozen_order is None:
            self.site.wait_until_stored()
        self.site.wait_until(lambda: self.site.engine.storage.prefetches.is_at_rest)

    @property
    def held_below(self) -> set[str]:
        return set(held_by(self.site, REMOTE)) if self.has_tier else set()

    # The rank and its scheduler

    @rule(names=prompts)
    def store(self, names: str) -> None:
        stored = self.site.store(names)
        assert not stored or self.frozen_order is None
        self.stored |= set(stored)
        self.settle()

    @rule(names=prompts, lookup_id=st.sampled_from(LOOKUPS), wait_s=st.sampled_from([0.0, WAIT_S]))
    def look_up(self, names: str, lookup_id: str, wait_s: float) -> None:
        may_be_held = self.stored | self.held_below
        num_found = self.site.lookup(names, lookup_id, wait_s)
        assert set(names[:num_found]) <= may_be_held
        self.promised[lookup_id] = names[:num_found]
        self.stored |= set(names[:num_found])
        self.settle()

    @rule(lookup_id=st.sampled_from(LOOKUPS))
    def retrieve(self, lookup_id: str) -> None:
        """What was promised is there, whatever was stored and switched since; every byte is checked."""
        assert self.site.retrieve(self.promised.pop(lookup_id, ""), lookup_id) == ""
        self.settle()

    @rule(names=prompts_of(len(NAMES)))
    def load_without_a_promise(self, names: str) -> None:
        """It may fail, and is never wrong."""
        may_be_held = self.stored | self.held_below
        if not self.site.retrieve(names, "nobody"):
            assert set(names) <= may_be_held
            self.stored |= set(names)
        self.settle()

    # Layer by layer, with all else in between

    @precondition(lambda self: self.load is None and any(self.promised.values()))
    @rule(data=st.data())
    def begin_a_load(self, data: st.DataObject) -> None:
        self.load_id = data.draw(st.sampled_from(sorted(each for each, names in self.promised.items() if names)))
        self.loading, self.is_doomed = self.promised[self.load_id], False
        parts = tuple(
            RetrievePart(digest, 0, blocks_of(LOAD_PLACE + place))
            for place, digest in enumerate(digests_of(self.loading))
        )
        self.load = self.site.engine.begin_retrieve(RetrieveJob(self.load_id, ROOT, "", parts))
        assert not self.load.failure
        self.settle()

    @precondition(lambda self: self.load is not None)
    @rule(layer=st.integers(0, NUM_LAYERS - 1))
    def load_a_layer(self, layer: int) -> None:
        assert self.load is not None
        self.load.copy(layer)

    @precondition(lambda self: self.load is not None)
    @rule(is_whole=st.booleans())
    def end_the_load(self, is_whole: bool) -> None:
        load, self.load, names, self.loading = self.load, None, self.loading, ""
        assert load is not None
        for layer in range(NUM_LAYERS):
            load.copy(layer)
        assert (load.end(is_whole) == "") == (is_whole and not self.is_doomed)
        self.promised.pop(self.load_id, None)
        if is_whole and not self.is_doomed:
            assert self.site.num_wrong(names, [blocks_of(LOAD_PLACE + place) for place in range(len(names))]) == 0

    @precondition(lambda self: self.saving is None)
    @rule(names=prompts)
    def begin_a_store(self, names: str) -> None:
        rows = tuple(blocks_of(STORE_PLACE + place) for place in range(len(names)))
        for digest, row in zip(digests_of(names), rows, strict=True):
            self.site.memory.fill(digest, row)
        job = StoreJob(ROOT, "", digests_of(names), rows)
        store = self.site.engine.begin_store(job)
        self.saving = (job, store) if store is not None else None

    @precondition(lambda self: self.saving is not None)
    @rule(is_committed=st.booleans(), num_layers=st.integers(0, NUM_LAYERS))
    def end_the_store(self, is_committed: bool, num_layers: int) -> None:
        assert self.saving is not None
        (job, store), self.saving = self.saving, None
        for layer in range(num_layers):
            store.copy(layer)
        if is_committed:
            stored = self.site.engine.end_store(job, store)
            assert not stored or self.frozen_order is None
            self.stored |= {name for name in NAMES if digest_of(name) in stored}
        else:
            store.abort()
        self.settle()

    # The end of promises

    @rule(lookup_ids=st.sets(st.sampled_from(LOOKUPS)))
    def release(self, lookup_ids: set[str]) -> None:
        num_held = sum(bool(self.promised.pop(lookup_id, "")) for lookup_id in lookup_ids)
        assert self.site.engine.release(lookup_ids) == num_held

    @rule()
    def let_time_pass(self) -> None:
        self.clock.advance(61.0)
        self.site.engine.expire_cycle()
        self.promised.clear()

    # An operator

    @precondition(lambda self: self.frozen_order is None)
    @rule()
    def clear_what_is_not_held(self) -> None:
        self.site.engine.clear(force=False)
        self.settle()
        self.stored = set("".join(self.promised.values()) + self.loading)

    @precondition(lambda self: self.frozen_order is None)
    @rule()
    def clear_what_is_held_too(self) -> None:
        self.site.engine.clear([L1_BACKEND], force=True)
        self.site.engine.release(LOOKUPS)
        self.promised.clear()
        self.loading, self.is_doomed = "", True
        self.stored = set()
        self.settle()

    @precondition(lambda self: self.frozen_order is None)
    @rule(name=st.sampled_from(["LRU", "FIFO", "LFU", "MRU"]))
    def order_otherwise(self, name: str) -> None:
        self.site.engine.l1.set_policy(make_policy(name))

    @precondition(lambda self: self.has_tier and self.frozen_order is None)
    @rule()
    def open_the_tier_anew(self) -> None:
        """Empty, since it is kept in memory."""
        self.site.engine.recreate_backend(REMOTE)
        self.site.wait_until(lambda: self.site.engine._backends.tiers(REMOTE)[0][1].is_usable)

    @rule(is_frozen=st.booleans())
    def freeze(self, is_frozen: bool) -> None:
        self.site.engine.freeze(is_frozen)
        if is_frozen and self.frozen_order is None:
            self.frozen_order = self.site.l1_order()
            self.had_temporary = self.site.engine.l1.report()["temporary_count"] > 0
        elif not is_frozen:
            self.frozen_order = None
        self.settle()

    @precondition(lambda self: self.frozen_order is None)
    @rule(is_on=st.booleans())
    def switch_the_hot_cache(self, is_on: bool) -> None:
        self.site.engine.set_hot_cache(is_on)

    @rule(name=st.sampled_from([L1_BACKEND, REMOTE]), is_bypassed=st.booleans())
    def bypass(self, name: str, is_bypassed: bool) -> None:
        if name in self.site.engine.backends():
            self.site.engine.bypass(name, is_bypassed)
            self.settle()

    @invariant()
    def nothing_is_lost_or_left(self) -> None:
        self.site.engine.l1.check_integrity()
        held = set("".join(self.promised.values()) + self.loading)
        assert self.site.num_locked == len(held)
        assert len(self.site.engine.locks) == sum(map(bool, self.promised.values()))
        assert self.site.engine.locks.num_bytes == self.site.engine.chunk_bytes * sum(map(len, self.promised.values()))
        assert self.site.num_objects <= POOL_CHUNKS

    @invariant()
    def what_is_frozen_is_as_it_was(self) -> None:
        """But for what is there only until its readers are done."""
        if self.frozen_order is None:
            return
        used, evictable = self.site.l1_order()
        before_used, before_evictable = self.frozen_order
        if self.had_temporary:
            assert used == [digest for digest in before_used if digest in used]
        else:
            assert (used, evictable) == (before_used, before_evictable)

    @invariant()
    def nothing_stays_where_l1_keeps_nothing(self) -> None:
        if not self.site.engine.has_hot_cache:
            held = {digest_of(name) for name in "".join(self.promised.values()) + self.loading}
            used, _ = self.site.l1_order()
            assert set(used) <= held

    def teardown(self) -> None:
        self.site.engine.freeze(False)
        if self.load is not None:
            self.load.end(False)
        if self.saving is not None:
            self.saving[1].abort()
        self.site.engine.close()


class TieredEngineMachine(EngineMachine):
    has_tier = True


@pytest.mark.parametrize("machine", [EngineMachine, TieredEngineMachine])
def test_engine_keeps_what_it_promises(machine: type[EngineMachine]) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=30)
    case().runTest()
