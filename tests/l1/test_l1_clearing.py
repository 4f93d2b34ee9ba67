"""Clearing in slices: bounded work each, and what others do between two of them."""

from __future__ import annotations

import pytest

from lmcache.l1 import clearing
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

KEY, OTHER_KEY = NamespaceKey("m", b"r" * 32, ""), NamespaceKey("m", b"q" * 32, "tenant")
RANK = (0x02000200, 0)
DIGESTS = [bytes([number]) * 32 for number in range(32)]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "_RECORDS_PER_SLICE", 5)
    monkeypatch.setattr(clearing, "_OBJECTS_PER_SLICE", 2)


def test_a_slice_removes_few_and_all_of_them_everything(open_pool: OpenPool) -> None:
    l1 = open_pool(units=16, records=16).l1
    Writer(l1, KEY, RANK).store(DIGESTS[:7])
    Writer(l1, OTHER_KEY, RANK).store(DIGESTS[:6])
    counts, slot = [], 0
    while slot < 16:
        count, slot = l1.clear_slice(slot, force=True)
        counts.append(count)
        l1.check_integrity()
    assert sum(counts) == 13
    assert max(counts) == 2
    assert l1.memory_bytes()[0] == 0
    assert len(l1.take_removed()) == 13


def test_what_was_there_is_gone_whatever_is_stored_and_evicted_between(open_pool: OpenPool) -> None:
    l1 = open_pool(units=8, records=16).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:8])
    slot, number = 0, 8
    while slot < 16:
        _, slot = l1.clear_slice(slot, force=False)
        writer.store(DIGESTS[number : number + 2])
        number += 2
        l1.check_integrity()
    assert not any(writer.holds(DIGESTS[:8]))


def test_locked_objects_and_writes_stay_without_force(open_pool: OpenPool) -> None:
    l1 = open_pool(units=16, records=16).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:6])
    l1.lookup(KEY, [RANK], DIGESTS[:3], LockBudget(100 * UNIT_BYTES))
    places = writer.reserve(DIGESTS[6:8])
    assert l1.clear(force=False) == 3
    assert writer.holds(DIGESTS[:6]) == [True] * 3 + [False] * 3
    assert len(l1.commit(writer.uid, places)) == 2
    l1.check_integrity()


def test_with_force_locked_objects_go_and_writes_are_hidden(open_pool: OpenPool) -> None:
    l1 = open_pool(units=16, records=16).l1
    writer = Writer(l1, KEY, RANK)
    writer.store(DIGESTS[:6])
    l1.lookup(KEY, [RANK], DIGESTS[:3], LockBudget(100 * UNIT_BYTES))
    places = writer.reserve(DIGESTS[6:8])
    assert l1.clear(force=True) == 6
    assert l1.report()["quarantined_count"] == 2
    assert l1.report()["read_locked_count"] == 0
    assert l1.commit(writer.uid, places) == []
    assert l1.memory_bytes()[0] == 0
    l1.check_integrity()
