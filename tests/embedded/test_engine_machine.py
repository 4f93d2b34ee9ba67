"""An embedded engine against a plain dict, whatever order its calls come in."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.conftest import FakeClock, new_pool_folder
from tests.embedded.site import Site, config_of

NAMES = "abcdef"
LOOKUPS = ("one", "two", "three")
POOL_CHUNKS = 4
prompts = st.integers(1, 4).flatmap(lambda length: st.permutations(NAMES).map(lambda names: "".join(names[:length])))


class EngineMachine(RuleBasedStateMachine):
    """`promised`: what each lookup found and nobody has loaded since. `stored`: what may be held."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.site = Site(new_pool_folder(), config_of(POOL_CHUNKS, lock_ttl_s=60.0), clock=self.clock)
        self.promised: dict[str, str] = {}
        self.stored: set[str] = set()

    @rule(names=prompts)
    def store(self, names: str) -> None:
        self.stored |= set(self.site.store(names))

    @rule(names=prompts, lookup_id=st.sampled_from(LOOKUPS))
    def look_up(self, names: str, lookup_id: str) -> None:
        num_found = self.site.lookup(names, lookup_id)
        assert set(names[:num_found]) <= self.stored
        self.promised[lookup_id] = names[:num_found]

    @rule(lookup_id=st.sampled_from(LOOKUPS))
    def retrieve(self, lookup_id: str) -> None:
        """What was promised is there, whatever was stored since; every byte is checked."""
        assert self.site.retrieve(self.promised.pop(lookup_id, ""), lookup_id) == ""

    @rule(names=prompts)
    def load_without_a_promise(self, names: str) -> None:
        """It may fail, and is never wrong."""
        if not self.site.retrieve(names, "nobody"):
            assert set(names) <= self.stored

    @rule(lookup_ids=st.sets(st.sampled_from(LOOKUPS)))
    def release(self, lookup_ids: set[str]) -> None:
        num_held = sum(bool(self.promised.pop(lookup_id, "")) for lookup_id in lookup_ids)
        assert self.site.engine.release(lookup_ids) == num_held

    @rule()
    def let_time_pass(self) -> None:
        self.clock.advance(61.0)
        self.site.engine.expire_cycle()
        self.promised.clear()

    @rule()
    def clear_what_is_not_held(self) -> None:
        self.site.engine.clear(force=False)
        self.stored = set("".join(self.promised.values()))

    @invariant()
    def nothing_is_lost_or_left(self) -> None:
        self.site.engine.l1.check_integrity()
        held = set("".join(self.promised.values()))
        assert self.site.num_locked == len(held)
        assert len(self.site.engine.locks) == sum(map(bool, self.promised.values()))
        assert self.site.engine.locks.num_bytes == self.site.engine.chunk_bytes * sum(map(len, self.promised.values()))
        assert self.site.num_objects <= POOL_CHUNKS

    def teardown(self) -> None:
        self.site.engine.close()


@pytest.mark.parametrize("num_examples", [25])
def test_engine_keeps_what_it_promises(num_examples: int) -> None:
    case = EngineMachine.TestCase
    case.settings = settings(max_examples=num_examples, stateful_step_count=30)
    case().runTest()
