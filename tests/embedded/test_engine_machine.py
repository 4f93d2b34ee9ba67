"""An embedded engine against a plain dict, whatever order its calls and an operator's switches come in."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmcache.testing.paged_memory import digest_of
from tests.conftest import FakeClock, new_pool_folder
from tests.embedded.site import L1_BACKEND, Site, config_of
from tests.embedded.tiers import REMOTE, held_by, memory

NAMES = "abcdef"
LOOKUPS = ("one", "two", "three")
POOL_CHUNKS = 4
WAIT_S = 20.0
prompts = st.integers(1, 4).flatmap(lambda length: st.permutations(NAMES).map(lambda names: "".join(names[:length])))


class EngineMachine(RuleBasedStateMachine):
    """`promised`: what each lookup found and nobody has loaded since. `stored`: what may be held in L1."""

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

    @rule(names=prompts)
    def load_without_a_promise(self, names: str) -> None:
        """It may fail, and is never wrong."""
        may_be_held = self.stored | self.held_below
        if not self.site.retrieve(names, "nobody"):
            assert set(names) <= may_be_held
            self.stored |= set(names)
        self.settle()

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
        self.stored = set("".join(self.promised.values()))

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
        held = set("".join(self.promised.values()))
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
            held = {digest_of(name) for name in "".join(self.promised.values())}
            used, _ = self.site.l1_order()
            assert set(used) <= held

    def teardown(self) -> None:
        self.site.engine.freeze(False)
        self.site.engine.close()


class TieredEngineMachine(EngineMachine):
    has_tier = True


@pytest.mark.parametrize("machine", [EngineMachine, TieredEngineMachine])
def test_engine_keeps_what_it_promises(machine: type[EngineMachine]) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=30)
    case().runTest()
