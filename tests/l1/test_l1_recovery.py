"""Recovery: what a dead server left comes back whole, in order; what is in doubt does not."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.recovery import RecoveryReport
from lmcache.memory.pool_files import PAGE_BYTES
from lmcache.memory.records import RECORD_BYTES
from tests.l1.conftest import UNIT_BYTES, OpenPool, Writer

KEY = NamespaceKey("m", b"r" * 32, "")
TENANT = NamespaceKey("m", b"r" * 32, "tenant")
RANK = (0x01000100, 0)
DIGESTS = [bytes([number]) * 32 for number in range(32)]
_PAYLOAD_OFFSET_AT = 32


def flip(folder: pathlib.Path, slot: int, byte: int) -> None:
    with (folder / "index").open("r+b") as file:
        file.seek(PAGE_BYTES + slot * RECORD_BYTES + byte)
        value = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([value ^ 0xFF]))


def test_objects_come_back_for_their_tenants_and_in_the_order_of_use(open_pool: OpenPool) -> None:
    pool = open_pool(units=8)
    Writer(pool.l1, KEY, RANK).store(DIGESTS[:4])
    Writer(pool.l1, TENANT, RANK).store(DIGESTS[:4])
    pool.l1.lookup(KEY, [RANK], DIGESTS[:4], None)
    pool.close(keep=True)
    again = open_pool(units=8)
    assert again.recovery == RecoveryReport(8, 0, 0)
    assert again.l1.usage_bytes_by_salt() == {"": 4 * UNIT_BYTES, "tenant": 4 * UNIT_BYTES}
    Writer(again.l1, KEY, RANK).store(DIGESTS[4:9])
    removed = [(event.cache_salt, event.digest) for event in again.l1.take_removed()]
    assert removed == [*[("tenant", digest) for digest in DIGESTS[3::-1]], ("", DIGESTS[3])]
    again.l1.check_integrity()


@pytest.mark.parametrize("byte", [0, _PAYLOAD_OFFSET_AT, 48, 112])
def test_a_record_with_a_flipped_byte_is_dropped_alone(open_pool: OpenPool, byte: int) -> None:
    pool = open_pool()
    writer = Writer(pool.l1, KEY, RANK)
    slots = [writer.reserve([digest]) for digest in DIGESTS[:4]]
    for places in slots:
        pool.l1.commit(1, places)
    folder = pool.files.folder
    pool.close(keep=True)
    flip(folder, slots[2][0].slot, byte)
    again = open_pool()
    assert again.recovery == RecoveryReport(3, 0, 1)
    assert Writer(again.l1, KEY, RANK).holds(DIGESTS[:4]) == [True, True, False, True]
    again.l1.check_integrity()


def test_objects_whose_names_were_lost_are_dropped(open_pool: OpenPool) -> None:
    pool = open_pool()
    Writer(pool.l1, KEY, RANK).store(DIGESTS[:2])
    Writer(pool.l1, TENANT, RANK).store(DIGESTS[:3])
    names = pool.files.folder / "names"
    pool.close(keep=True)
    names.write_bytes(names.read_bytes()[:-1])
    again = open_pool()
    assert again.recovery == RecoveryReport(2, 0, 3)
    assert again.l1.usage_bytes_by_salt() == {"": 2 * UNIT_BYTES}
    again.l1.check_integrity()
    assert Writer(again.l1, TENANT, RANK).store(DIGESTS[:3]) == 3


def test_a_tenant_that_came_back_under_another_id_can_be_emptied_after_a_restart(open_pool: OpenPool) -> None:
    """Ids of names are reused; the file then holds the same name twice."""
    first = open_pool(units=2)
    for key in (KEY, TENANT, KEY, TENANT, NamespaceKey("other", b"s" * 32, "x"), TENANT, KEY):
        Writer(first.l1, key, RANK).store(DIGESTS[:2])
    first.close(keep=True)
    again = open_pool(units=2)
    assert again.recovery.num_ready == 2
    assert again.l1.clear(force=True) == 2
    again.l1.check_integrity()


def test_writes_wait_for_their_owner_over_a_restart(open_pool: OpenPool) -> None:
    pool = open_pool(units=4)
    places = Writer(pool.l1, KEY, RANK, uid=7).reserve(DIGESTS[:4])
    pool.close(keep=True)
    again = open_pool(units=4)
    assert again.recovery == RecoveryReport(0, 4, 0)
    assert again.l1.pending_owners() == {7}
    assert Writer(again.l1, KEY, RANK, uid=8).reserve(DIGESTS[:1]) == [], "their bytes are not handed out"
    assert again.l1.commit(7, places[:1]) == [], "a write hidden meanwhile is freed, not made findable"
    assert again.l1.abort(7, places[1:2]) == 1
    assert again.l1.abort_owner(7) == 2
    assert Writer(again.l1, KEY, RANK, uid=8).store(DIGESTS[:4]) == 4
    again.l1.check_integrity()


def test_recovery_over_and_over_changes_nothing(open_pool: OpenPool) -> None:
    pool = open_pool()
    Writer(pool.l1, KEY, RANK).store(DIGESTS[:5], units=2)
    for _ in range(3):
        pool.close(keep=True)
        pool = open_pool()
        assert pool.recovery == RecoveryReport(5, 0, 0)
        assert Writer(pool.l1, KEY, RANK).holds(DIGESTS[:6]) == [True] * 5 + [False]


def test_an_index_full_of_noise_yields_no_object_and_stops_nobody(open_pool: OpenPool) -> None:
    pool = open_pool()
    Writer(pool.l1, KEY, RANK).store(DIGESTS[:8])
    index = pool.files.folder / "index"
    pool.close(keep=True)
    with index.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(bytes(range(1, 256)) * 30)
    again = open_pool()
    assert again.recovery.num_ready == again.recovery.num_quarantined == 0
    assert again.recovery.num_dropped > 50
    assert Writer(again.l1, KEY, RANK).store(DIGESTS[:8]) == 8
    again.l1.check_integrity()


def test_another_geometry_starts_empty(open_pool: OpenPool) -> None:
    pool = open_pool(units=16)
    Writer(pool.l1, KEY, RANK).store(DIGESTS[:8])
    pool.close(keep=True)
    again = open_pool(units=8)
    assert again.recovery == RecoveryReport(0, 0, 0)
    assert again.l1.memory_bytes() == (0, 8 * UNIT_BYTES)
