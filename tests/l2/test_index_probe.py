"""An answer of a shared backend that a removal overtakes is not believed."""

from __future__ import annotations

import pytest

from lmcache.eviction import make_policy
from lmcache.l2.object_index import ObjectIndex
from lmcache.testing.l2_backend import make_key

KEY, OTHER = make_key(1), make_key(2)


@pytest.fixture
def index(clock):
    return ObjectIndex(make_policy("LRU"), 0, 60.0, clock)


def test_what_is_found_is_adopted(index):
    index.begin_probe([KEY, OTHER, KEY])
    index.end_probe([KEY, OTHER, KEY], [10, -1, 10])
    assert index.contains(KEY)
    assert not index.contains(OTHER)
    assert index.usage()[0] == 10
    index.check_integrity()


def _delete(index: ObjectIndex) -> None:
    index.adopt(KEY, 10)
    index.end_removal(index.begin_removal([KEY])[0])


def _forget(index: ObjectIndex) -> None:
    index.adopt(KEY, 10)
    index.forget(KEY)


def _abort(index: ObjectIndex) -> None:
    index.begin_store(KEY, 10)
    index.abort(KEY)


@pytest.mark.parametrize("leave", [_delete, _forget, _abort])
def test_what_left_meanwhile_is_not(index, leave):
    index.begin_probe([KEY])
    index.begin_probe([KEY])
    leave(index)
    index.end_probe([KEY], [10])
    index.end_probe([KEY], [10])
    assert not index.contains(KEY)
    index.begin_probe([KEY])
    index.end_probe([KEY], [10])
    assert index.contains(KEY), "an answer asked for later counts again"
    index.check_integrity()
