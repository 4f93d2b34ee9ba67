"""One contract for every policy in the folder, held against a naive list; and leaves before roots."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.errors import ConfigError
from lmcache.eviction import make_policy, policy_names


class NaiveLRU:
    """The least a recency order can be: a list, the most recent last."""

    def __init__(self) -> None:
        self.slots: list[int] = []

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self.remove(slot)
            self.slots.append(slot)

    def remove(self, slot: int) -> None:
        if slot in self.slots:
            self.slots.remove(slot)

    def victims(self) -> list[int]:
        return self.slots


class NaiveNoop(NaiveLRU):
    def victims(self) -> list[int]:
        return []


MODELS = {"LRU": NaiveLRU, "noop": NaiveNoop}
SLOTS = st.integers(0, 12)
STEPS = st.lists(
    st.tuples(st.just("touch"), st.lists(SLOTS, max_size=6)) | st.tuples(st.just("remove"), SLOTS), max_size=40
)


def test_every_policy_has_a_model() -> None:
    assert policy_names() == sorted(MODELS)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="LRU, noop"):
        make_policy("lru")


@pytest.mark.parametrize("name", policy_names())
def test_policies_start_empty_and_bear_their_name(name: str) -> None:
    policy = make_policy(name)
    assert policy.name == name
    assert len(policy) == 0
    assert list(policy.victims()) == []


@pytest.mark.parametrize("name", policy_names())
@given(steps=STEPS)
def test_a_policy_does_what_its_naive_list_does(name: str, steps: list[tuple[str, list[int] | int]]) -> None:
    policy, model = make_policy(name), MODELS[name]()
    for verb, argument in steps:
        getattr(policy, verb)(argument)
        getattr(model, verb)(argument)
        assert list(policy.victims()) == model.victims()
        assert len(policy) == len(model.slots)


@pytest.mark.parametrize("name", policy_names())
def test_asking_for_victims_changes_nothing(name: str) -> None:
    policy = make_policy(name)
    policy.touch([3, 1, 2])
    assert list(policy.victims()) == list(policy.victims())
    assert len(policy) == 3


@pytest.mark.parametrize("name", policy_names())
def test_touch_takes_an_iterator_once(name: str) -> None:
    policy = make_policy(name)
    policy.touch(slot for slot in (1, 2, 2))
    assert len(policy) == 2


def test_lru_gives_up_leaves_before_roots_on_a_trace_of_shared_prefixes() -> None:
    """Prompts are paths in a tree, touched from tail to head; whatever is cut off is never a root
    whose leaves stay."""
    chance, policy = random.Random(7), make_policy("LRU")
    numbers = itertools.count()
    parent: dict[int, int | None] = {}
    paths: list[list[int]] = [[]]
    for _ in range(400):
        path = list(chance.choice(paths)[: chance.randrange(1, 9)])
        while len(path) < 8 and chance.random() < 0.8:
            slot = next(numbers)
            parent[slot] = path[-1] if path else None
            path.append(slot)
        policy.touch(reversed(path))
        paths.append(path)
    kept = set(parent)
    for victim in list(policy.victims()):
        kept.remove(victim)
        assert not any(parent[slot] == victim for slot in kept), f"slot {victim} went before a leaf of its own"
    assert not kept
