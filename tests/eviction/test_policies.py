"""One contract for every policy in the folder, each held against its naive list; and what each is for."""

from __future__ import annotations

import copy
import itertools
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lmcache.errors import ConfigError, IntegrityError
from lmcache.eviction import make_policy, policy_name, policy_names
from lmcache.eviction.base import EvictionPolicy
from tests.eviction.models import MODELS

TENANTS = ["", "a", "b"]
PER_TENANT = ["IsolatedLRU"]
OFFERING = [name for name in policy_names() if name != "noop"]
SLOT = st.integers(-1, 12)
# Few hashes over more slots: keys come back while their ghosts are remembered.
KEY_HASH = st.integers(0, 15).map(lambda number: number * 0x9E3779B97F4A7C15 % 2**64)


def filled(name: str, num_slots: int) -> EvictionPolicy:
    policy = make_policy(name)
    for slot in range(num_slots):
        policy.add(slot, slot)
    return policy


class PolicyMachine(RuleBasedStateMachine):
    """Any calls in any order, unknown slots included, give what the naive lists give."""

    policy_name: str

    def __init__(self) -> None:
        super().__init__()
        self.policy = make_policy(self.policy_name)
        self.model = MODELS[self.policy_name]()
        for slot in range(8):
            self.add(slot, slot, TENANTS[slot % 3])

    @rule(first=st.integers(0, 12), key_hashes=st.lists(KEY_HASH, min_size=1, max_size=6))
    def store(self, first: int, key_hashes: list[int]) -> None:
        """As many as there are free slots from the first on."""
        free = [slot for slot in range(first, 13) if slot not in self.model.tracked]
        for slot, key_hash in zip(free, key_hashes, strict=False):
            self.add(slot, key_hash, TENANTS[slot % 3])

    @rule(slot=st.integers(0, 12), key_hash=KEY_HASH, tenant=st.sampled_from(TENANTS))
    def add(self, slot: int, key_hash: int, tenant: str) -> None:
        if slot in self.model.tracked:
            with pytest.raises(IntegrityError, match=f"slot {slot} is tracked already"):
                self.policy.add(slot, key_hash, tenant)
        else:
            self.policy.add(slot, key_hash, tenant)
            self.model.add(slot, key_hash, tenant)

    @rule(slots=st.lists(SLOT, max_size=6))
    def touch(self, slots: list[int]) -> None:
        self.policy.touch(iter(slots))
        self.model.touch(slots)

    @rule(slots=st.lists(SLOT, max_size=6))
    def refresh(self, slots: list[int]) -> None:
        self.policy.refresh(iter(slots))
        self.model.refresh(slots)

    @rule(slot=SLOT)
    def hold(self, slot: int) -> None:
        self.policy.hold(slot)
        self.model.hold(slot)

    @rule(slot=SLOT)
    def release(self, slot: int) -> None:
        self.policy.release(slot)
        self.model.release(slot)

    @rule(slot=SLOT, is_evicted=st.booleans())
    def remove(self, slot: int, is_evicted: bool) -> None:
        self.policy.remove(slot, is_evicted)
        self.model.remove(slot, is_evicted)

    @rule(num_max=st.integers(1, 6), data=st.data())
    def evict(self, num_max: int, data: st.DataObject) -> None:
        """A walk, of which some are evicted on the way and others kept."""
        expected = self.model.walk(num_max)
        doomed = []
        for slot in itertools.islice(self.policy.victims(), num_max):
            assert slot == expected.pop(0)
            if data.draw(st.booleans()):
                self.policy.remove(slot, is_evicted=True)
                doomed.append(slot)
        assert not expected
        for slot in doomed:
            self.model.remove(slot, is_evicted=True)

    @rule(tenant=st.sampled_from(TENANTS))
    def ask_for_one_tenant(self, tenant: str) -> None:
        if self.policy.is_per_tenant:
            assert list(self.policy.victims(tenant)) == self.model.walk(20, tenant)
        else:
            with pytest.raises(IntegrityError, match=f"{self.policy_name} does not tell tenants apart"):
                self.policy.victims(tenant)

    @invariant()
    def agrees(self) -> None:
        assert len(self.policy) == len(self.model.tracked)
        assert list(copy.deepcopy(self.policy).victims()) == copy.deepcopy(self.model).walk(20)


@pytest.mark.parametrize("name", policy_names())
def test_a_policy_does_what_its_naive_lists_do(name: str) -> None:
    machine = type(f"{name}Machine", (PolicyMachine,), {"policy_name": name})
    case = machine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=30)
    case().runTest()


@pytest.mark.parametrize("capacity", [1, 3, 10, 25])
@pytest.mark.parametrize("name", OFFERING)
def test_a_full_cache_evicts_what_the_naive_lists_evict(name: str, capacity: int) -> None:
    """Skewed accesses to more keys than fit, so that ghosts are met again and again."""
    chance, policy, model = random.Random(capacity), make_policy(name), MODELS[name]()
    slot_of: dict[int, int] = {}
    held: list[int] = []
    for _ in range(4000):
        key = int(chance.triangular(0, 3 * capacity + 2, 0))
        for each in (policy, model):
            for slot in held:
                each.release(slot)
        held = []
        if key in slot_of:
            held = [slot_of[key]] * chance.randrange(2)
            for each in (policy, model):
                for slot in held:
                    each.hold(slot)
                each.touch([slot_of[key]])
                each.refresh(list(slot_of.values())[:2])
            continue
        slot = len(slot_of)
        if len(slot_of) == capacity:
            slot = next(policy.victims())
            assert [slot] == model.walk(1)
            policy.remove(slot, is_evicted=True)
            model.remove(slot, is_evicted=True)
            slot_of = {other: place for other, place in slot_of.items() if place != slot}
        slot_of[key] = slot
        policy.add(slot, key)
        model.add(slot, key, "")


def test_every_policy_has_a_model() -> None:
    assert set(policy_names()) == set(MODELS)


@pytest.mark.parametrize(
    ("given", "name"),
    [("lru", "LRU"), ("isolatedlru", "IsolatedLRU"), ("S3FIFO", "S3-FIFO"), ("s3-fifo", "S3-FIFO"), ("NOOP", "noop")],
)
def test_a_name_is_known_in_any_case_and_with_or_without_hyphens(given: str, name: str) -> None:
    assert policy_name(given) == name
    assert make_policy(given).name == name


@pytest.mark.parametrize("name", ["RANDOM", "base", "", "ghosts", "ranked"])
def test_an_unknown_policy_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="known: ARC, FIFO, IsolatedLRU, LFU, LRU, MRU, noop, S3-FIFO"):
        make_policy(name)


# The contract, on every policy


@pytest.mark.parametrize("name", policy_names())
def test_policies_start_empty_and_bear_their_name(name: str) -> None:
    policy = make_policy(name)
    assert policy.name == name
    assert policy.is_per_tenant == (name in PER_TENANT)
    assert len(policy) == 0
    assert list(policy.victims()) == []


@pytest.mark.parametrize("name", policy_names())
def test_a_slot_is_not_added_twice_and_is_not_negative(name: str) -> None:
    policy = filled(name, 1)
    for slot, text in ((0, "slot 0 is tracked already"), (-1, "-1 is no slot")):
        with pytest.raises(IntegrityError, match=text):
            policy.add(slot, 7)
    assert len(policy) == 1


@pytest.mark.parametrize("name", OFFERING)
def test_victims_are_all_slots_that_are_not_held_each_once(name: str) -> None:
    policy = filled(name, 3000)
    policy.touch(range(0, 3000, 7))
    for slot in range(0, 3000, 3):
        policy.hold(slot)
    policy.touch(range(0, 3000, 5))
    assert sorted(policy.victims()) == [slot for slot in range(3000) if slot % 3]
    assert len(policy) == 3000


@pytest.mark.parametrize("name", OFFERING)
def test_the_first_victim_is_the_same_until_something_changes(name: str) -> None:
    policy = filled(name, 20)
    policy.touch([0, 1, 2, 0, 1, 2])
    first = next(policy.victims())
    assert [next(policy.victims()) for _ in range(3)] == [first] * 3


@pytest.mark.parametrize("name", OFFERING)
def test_what_was_just_given_may_be_held_or_removed_on_the_way(name: str) -> None:
    policy = filled(name, 30)
    given = []
    for number, slot in enumerate(policy.victims()):
        given.append(slot)
        if number % 3 == 0:
            policy.hold(slot)
        elif number % 3 == 1:
            policy.remove(slot, is_evicted=True)
    assert sorted(given) == list(range(30))
    assert len(policy) == 20


@pytest.mark.parametrize("name", OFFERING)
def test_a_slot_released_as_often_as_it_likes_stands_in_line_once(name: str) -> None:
    policy = filled(name, 3)
    for _ in range(2):
        policy.hold(1)
    for _ in range(3):
        policy.release(1)
    assert sorted(policy.victims()) == [0, 1, 2]


@pytest.mark.parametrize("name", policy_names())
def test_a_slot_is_used_again_for_another_object(name: str) -> None:
    policy = filled(name, 2)
    policy.hold(0)
    policy.remove(0)
    policy.add(0, 99, "later")
    assert len(policy) == 2
    if name != "noop":
        assert sorted(policy.victims()) == [0, 1]


# What each is for


def test_lru_gives_up_leaves_before_roots_on_a_trace_of_shared_prefixes() -> None:
    """Prompts are paths in a tree, touched from tail to head; whatever is cut off is never a root
    whose leaves stay."""
    chance, policy = random.Random(7), make_policy("LRU")
    numbers = itertools.count()
    parent: dict[int, int | None] = {}
    paths: list[list[int]] = [[]]
    for _ in range(400):
        path = list(chance.choice(paths)[: chance.randrange(1, 9)])
        fresh = []
        while len(path) < 8 and chance.random() < 0.8:
            slot = next(numbers)
            parent[slot] = path[-1] if path else None
            path.append(slot)
            fresh.append(slot)
        for slot in reversed(fresh):
            policy.add(slot, slot)
        policy.touch(reversed(path))
        paths.append(path)
    kept = set(parent)
    for victim in list(policy.victims()):
        kept.remove(victim)
        assert not any(parent[slot] == victim for slot in kept), f"slot {victim} went before a leaf of its own"
    assert not kept


@pytest.mark.parametrize("name", ["ARC", "S3-FIFO"])
def test_a_scan_that_nobody_repeats_leaves_what_is_used_again(name: str) -> None:
    policy = filled(name, 10)
    for _ in range(2):
        policy.touch(range(5))
    for number in range(100):
        victim = next(policy.victims())
        policy.remove(victim, is_evicted=True)
        policy.add(victim, 1000 + number)
    assert set(range(5)).isdisjoint(itertools.islice(policy.victims(), 5))


@pytest.mark.parametrize("name", ["ARC", "S3-FIFO"])
@pytest.mark.parametrize("is_evicted", [True, False])
def test_only_what_was_evicted_is_recognised_when_it_comes_back(name: str, is_evicted: bool) -> None:
    policy = filled(name, 10)
    policy.remove(0, is_evicted)
    for slot in (0, 10, 11):
        policy.add(slot, slot)
    order = list(policy.victims())
    assert (order.index(0) > order.index(10)) == is_evicted
