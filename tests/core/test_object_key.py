"""ObjectKey and kv_rank: documented vectors and the invariants of every field."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.core.keys import ObjectKey, check_cache_salt, make_kv_rank
from lmcache.errors import KeyFormatError

KEY = ObjectKey(b"\x01\xab", "org/m", 0x02010201, 10, "u1")


def test_kv_rank_vectors() -> None:
    assert make_kv_rank(2, 1, 2, 1) == 0x02010201
    assert make_kv_rank(1, 0, 1, 0) == 16777472


@given(world=st.integers(1, 255), local_world=st.integers(1, 255), data=st.data())
def test_kv_rank_keeps_its_four_numbers_apart(world: int, local_world: int, data: st.DataObject) -> None:
    rank, local_rank = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, local_world - 1))
    assert list(make_kv_rank(world, rank, local_world, local_rank).to_bytes(4, "big")) == [
        world, rank, local_world, local_rank,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "numbers", [(0, 0, 1, 0), (256, 0, 1, 0), (2, 2, 2, 0), (2, -1, 2, 0), (2, 0, 2, 2), (2, 0, 0, 0), (2, 0, 256, 0)]
)
def test_a_rank_outside_its_world_is_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(KeyFormatError):
        make_kv_rank(*numbers)


@pytest.mark.parametrize(
    "change",
    [{"chunk_hash": b"\x02"}, {"model_name": "m"}, {"kv_rank": 1}, {"object_group_id": 0}, {"cache_salt": ""}],
)
def test_every_field_tells_keys_apart(change: dict[str, object]) -> None:
    other = dataclasses.replace(KEY, **change)
    assert other != KEY
    assert len({other, KEY}) == 2


def test_equal_fields_make_equal_keys() -> None:
    again = dataclasses.replace(KEY)
    assert again == KEY
    assert hash(again) == hash(KEY)


def test_group_and_salt_have_defaults() -> None:
    key = ObjectKey(b"", "m", 0)
    assert (key.object_group_id, key.cache_salt) == (0, "")


@pytest.mark.parametrize(
    "change",
    [{"model_name": "a@b"}, {"object_group_id": -1}, {"kv_rank": -1}, {"kv_rank": 2**32}, {"cache_salt": "x" * 129}],
)
def test_broken_fields_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(KeyFormatError):
        dataclasses.replace(KEY, **change)


@given(before=st.text(max_size=20), bad=st.sampled_from("@/\\\0"), after=st.text(max_size=20))
def test_a_salt_with_a_forbidden_character_is_refused_and_named(before: str, bad: str, after: str) -> None:
    with pytest.raises(KeyFormatError) as refused:
        check_cache_salt(before + bad + after)
    assert repr(bad) in str(refused.value)


@given(st.text(st.characters(exclude_characters="@/\\\0", exclude_categories=["Cs"]), max_size=128))
def test_any_other_salt_is_kept_as_it_is(salt: str) -> None:
    assert check_cache_salt(salt) == salt
