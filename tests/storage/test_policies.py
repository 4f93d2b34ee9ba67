"""Store and prefetch policies: pure choices."""

from __future__ import annotations

import pytest

from lmcache.errors import ConfigError
from lmcache.storage.prefetch_policies import make_prefetch_policy, prefetch_policy_names
from lmcache.storage.store_policies import make_store_policy, store_policy_names

YES_NO = {0: [False, True, False], 1: [True, True, False]}


@pytest.mark.parametrize("name", ["default", "retain"])
def test_the_adapter_of_lowest_index_loads_each_key(name: str) -> None:
    assert make_prefetch_policy(name).plan(YES_NO, 3) == [1, 0, None]


def test_first_takes_all_from_the_longest_prefix_and_among_equals_from_the_first_to_answer() -> None:
    policy = make_prefetch_policy("first")
    assert policy.plan(YES_NO, 3) == [1, 1, None]
    assert policy.plan({2: [True, True], 0: [True, True]}, 2) == [2, 2]
    assert policy.plan({2: [True, False], 0: [True, True]}, 2) == [0, 0]
    assert policy.plan({2: [True, False, False], 0: [False, True, True]}, 3) == [2, 0, 0]


def test_first_need_not_wait_once_an_adapter_has_everything() -> None:
    first, default = make_prefetch_policy("first"), make_prefetch_policy("default")
    assert first.is_decided({1: [True, True]}, 2)
    assert not first.is_decided({1: [True, False]}, 2)
    assert not default.is_decided({1: [True, True]}, 2)
    assert default.is_decided({1: [False], 0: [False]}, 2)


def test_only_retain_retains() -> None:
    assert [name for name in prefetch_policy_names() if make_prefetch_policy(name).retains] == ["retain"]


def test_store_policies_write_everywhere_and_only_skip_l1_lets_go() -> None:
    assert [make_store_policy(name).choose([0, 2]) for name in store_policy_names()] == [[0, 2], [0, 2]]
    assert [name for name in store_policy_names() if not make_store_policy(name).keeps_l1] == ["skip_l1"]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--l2-store-policy must be one of default, skip_l1 "):
        make_store_policy("x")
    with pytest.raises(ConfigError, match="--l2-prefetch-policy must be one of default, first, retain "):
        make_prefetch_policy("x")
