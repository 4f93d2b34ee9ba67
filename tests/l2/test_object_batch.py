"""Taking up many objects at once leaves the index as taking them up one by one does."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.keys import ObjectKey
from lmcache.errors import IntegrityError
from lmcache.eviction import make_policy, policy_names
from lmcache.l2.digest_table import DigestTable
from lmcache.l2.object_batch import ObjectBatch, Space
from lmcache.l2.object_index import ObjectIndex

SPACES = [Space("model", 1, 0, ""), Space("model", 1, 0, "tenant"), Space("other", 2, 1, "tenant")]


def _digest(start: int) -> bytes:
    """Digests whose first bytes decide their home; the rest tells them apart."""
    return (start % (1 << 64)).to_bytes(8, "little") + bytes(24)


# Homes that crowd together, at the end of the table as well, where they go on at the start.
_starts = st.lists(st.integers(0, 8) | st.integers(56, 72) | st.integers(1 << 63, (1 << 64) - 1), unique=True)


@given(_starts, st.integers(0, 3))
def test_a_filled_table_finds_every_row(starts: list[int], space: int) -> None:
    table = DigestTable()
    table.fill(array("i", [space] * len(starts)), bytearray().join(map(_digest, starts)))
    table.check_integrity()
    assert [table.find(space, _digest(start)) for start in starts] == list(range(len(starts)))
    assert table.find(space + 1, _digest(0)) == -1
    for start in starts[::2]:
        table.remove(table.find(space, _digest(start)))
    table.check_integrity()
    for start in starts[::2]:
        table.add(space, _digest(start))
    table.check_integrity()


def _index(policy: str = "LRU") -> ObjectIndex:
    return ObjectIndex(make_policy(policy), 0, 60.0, lambda: 0.0)


_objects = st.dictionaries(
    st.tuples(st.sampled_from(SPACES), st.integers(0, 200)),
    st.tuples(st.integers(0, 1000), st.integers(0, 5)),
    max_size=60,
)


@pytest.mark.parametrize("policy", policy_names())
@given(objects=_objects)
def test_a_batch_is_the_same_as_one_by_one(objects: dict[tuple[Space, int], tuple[int, int]], policy: str) -> None:
    batch, bulk, single = ObjectBatch(), _index(policy), _index(policy)
    for (space, start), (size, stamp) in objects.items():
        batch.add(space, _digest(start), size, stamp)
    bulk.adopt_all(batch)
    bulk.check_integrity()
    in_order = sorted(objects.items(), key=lambda item: item[1][1])
    for (space, start), (size, _) in in_order:
        single.adopt(space.key(_digest(start)), size)
    assert bulk.usage() == single.usage()
    assert sorted(_all(bulk), key=repr) == sorted(_all(single), key=repr)
    assert bulk.begin_eviction(1 << 40, 1000) == single.begin_eviction(1 << 40, 1000)


def _all(index: ObjectIndex) -> list[tuple[ObjectKey, int]]:
    return index.page(0, 1000, None)[0]


def test_only_an_index_that_held_nothing_takes_up_a_batch() -> None:
    index = _index()
    index.adopt(SPACES[0].key(_digest(1)), 10)
    with pytest.raises(IntegrityError):
        index.adopt_all(ObjectBatch())


def test_keys_by_their_first_byte() -> None:
    index = _index()
    assert index.keys_starting_with(1) == []
    for start in range(600):
        index.adopt(SPACES[0].key(_digest(start)), 10)
    keys = index.keys_starting_with(1)
    assert {key.chunk_hash for key in keys} == {_digest(1), _digest(257), _digest(513)}
    index.forget(keys[0])
    assert set(index.keys_starting_with(1)) == set(keys[1:])


def test_empty_objects_of_one_tenant_come_and_go() -> None:
    index = _index()
    keys = [SPACES[1].key(_digest(number)) for number in range(2)]
    for key in keys:
        index.adopt(key, 0)
    index.check_integrity()
    assert [index.forget(key) for key in keys] == [0, 0]
    index.check_integrity()
