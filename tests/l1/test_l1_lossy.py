"""Objects that came from a lossy tier carry a mark, for as long as they are in L1."""

from __future__ import annotations

from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_places
from tests.l1.conftest import OpenPool, Writer

KEY = NamespaceKey("m", b"r" * 32, "")
RANK = (0x01000100, 0)
DIGESTS = [bytes([number]) * 32 for number in range(8)]


def load(l1: L1Manager, digest: bytes, is_lossy: bool) -> Place:
    (place,) = Writer(l1, KEY, RANK).reserve([digest])
    committed = l1.commit_loaded(1, place, lock=False, is_temporary=False, is_lossy=is_lossy)
    assert committed is not None
    return committed


def is_lossy(l1: L1Manager, digest: bytes) -> bool:
    """As whoever stores it elsewhere is told."""
    _, packed = l1.lookup(KEY, [RANK], [digest], LockBudget(1 << 30))
    ((slot, word, _, _),) = split_places(packed)
    held = l1.describe(Place(slot, word))
    assert held is not None
    assert held.is_lossy == l1.is_lossy(Place(slot, word))
    l1.unlock([Place(slot, word)])
    return held.is_lossy


def test_the_mark_belongs_to_the_object_not_to_its_slot(open_pool: OpenPool) -> None:
    l1 = open_pool(units=2, records=2).l1
    first, second = load(l1, DIGESTS[0], True), load(l1, DIGESTS[1], False)
    assert [is_lossy(l1, digest) for digest in DIGESTS[:2]] == [True, False]
    assert Writer(l1, KEY, RANK).store(DIGESTS[2:4]) == 2
    _, packed = l1.lookup(KEY, [RANK], DIGESTS[2:4], None)
    assert {slot for slot, _, _, _ in split_places(packed)} == {first.slot, second.slot}
    assert [is_lossy(l1, digest) for digest in DIGESTS[2:4]] == [False, False]


def test_the_mark_outlives_the_server(open_pool: OpenPool) -> None:
    pool = open_pool()
    load(pool.l1, DIGESTS[0], True)
    load(pool.l1, DIGESTS[1], False)
    pool.close(keep=True)
    l1 = open_pool().l1
    assert [is_lossy(l1, digest) for digest in DIGESTS[:2]] == [True, False]
    l1.check_integrity()
