"""Ghosts against a list: the same keys, the same order of going, through many buckets."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from lmcache.eviction.ghosts import Ghosts
from tests.eviction.models import remember, trim

# Hashes that share their low bits share a bucket, in tables of any size.
HASH = st.integers(0, 9).map(lambda number: number << 60)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard"]), HASH) | st.tuples(st.just("trim"), st.integers(-1, 6)), max_size=60
)


@given(steps=STEPS)
def test_ghosts_are_the_list_they_stand_for(steps: list[tuple[str, int]]) -> None:
    ghosts, model = Ghosts(), list[int]()
    for verb, argument in steps:
        if verb == "add":
            ghosts.add(argument)
            remember(model, argument)
        elif verb == "trim":
            ghosts.trim(argument)
            trim(model, argument)
        else:
            assert ghosts.discard(argument) == (argument in model)
            model = [key_hash for key_hash in model if key_hash != argument]
        assert len(ghosts) == len(model)
        assert [number << 60 in ghosts for number in range(10)] == [number << 60 in model for number in range(10)]


def test_many_ghosts_are_all_found_after_the_table_grew() -> None:
    chance = random.Random(3)
    hashes = [chance.getrandbits(64) for _ in range(5000)]
    ghosts = Ghosts()
    for key_hash in hashes:
        ghosts.add(key_hash)
    ghosts.trim(4000)
    assert [key_hash in ghosts for key_hash in hashes] == [False] * 1000 + [True] * 4000
    for key_hash in hashes[:1000]:
        ghosts.add(key_hash)
    assert all(key_hash in ghosts for key_hash in hashes)
