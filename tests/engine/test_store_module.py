"""The store module: batches by id, refusals, and slots that nobody loses."""

from __future__ import annotations

import pytest

from lmcache.core.hashing import DIGEST_BYTES
from lmcache.errors import ProtocolError, RequestRefusedError
from lmcache.protocol.messages import ReserveStatus
from tests.engine.conftest import DIGESTS, Harness, slots_of


def refusal(call, *arguments: object) -> tuple[str, str]:
    with pytest.raises(RequestRefusedError) as refused:
        call(*arguments)
    return refused.value.code, str(refused.value)


def test_a_committed_batch_is_found_and_closed(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:3])
    assert joined.engine.stores.num_open_batches == 1
    assert joined.lookup(DIGESTS[:3]).num_chunks == 0
    committed = joined.commit(reserved)
    assert (committed.num_accepted, committed.num_refused) == (3, 0)
    assert joined.engine.stores.num_open_batches == 0
    assert joined.lookup(DIGESTS[:3]).num_chunks == 3


def test_what_a_commit_does_not_name_is_given_up(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:3])
    first = slots_of(reserved)[:16]
    assert joined.engine.stores.commit(joined.engine.pool, joined.client(1), 1, first).num_accepted == 1
    assert joined.l1_report["write_locked_count"] == joined.l1_report["quarantined_count"] == 0
    assert joined.lookup(DIGESTS[:3]).num_chunks == 1


def test_chunks_held_or_written_by_others_are_skipped(harness: Harness) -> None:
    for number in (1, 2):
        harness.worker(uid=number, engine_id=f"e{number}")
        harness.scheduler(uid=100 + number, engine_id=f"e{number}")
    harness.store(DIGESTS[:1], uid=1)
    harness.reserve(DIGESTS[1:2], uid=1)
    statuses = harness.reserve(DIGESTS[:3], uid=2).statuses
    assert list(statuses) == [ReserveStatus.EXISTS, ReserveStatus.BUSY, ReserveStatus.RESERVED]


def test_a_batch_id_in_use_or_given_up_is_refused(joined: Harness) -> None:
    joined.reserve(DIGESTS[:1], batch_id=5)
    assert refusal(joined.reserve, DIGESTS[1:2], 5)[0] == "invalid"
    assert joined.abort(5) == 1
    assert joined.abort(5) == 0
    assert refusal(joined.reserve, DIGESTS[:1], 5)[0] == "invalid"
    joined.abort(6)
    assert "given up before" in refusal(joined.reserve, DIGESTS[:1], 6)[1], "the abort overtook its reserve"
    assert joined.l1_report["memory_used_bytes"] == 0


def test_a_commit_after_its_abort_is_refused(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:2])
    assert joined.abort() == 2
    committed = joined.commit(reserved)
    assert (committed.num_accepted, committed.num_refused) == (0, 2)
    assert joined.lookup(DIGESTS[:2]).num_chunks == 0
    assert joined.l1_report["memory_used_bytes"] == 0


def test_a_commit_sent_twice_is_refused_the_second_time_and_harms_nothing(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:2])
    assert joined.commit(reserved).num_accepted == 2
    assert joined.commit(reserved).num_refused == 2
    assert joined.lookup(DIGESTS[:2]).num_chunks == 2


def test_nobody_commits_or_aborts_for_another(harness: Harness) -> None:
    for number in (1, 2):
        harness.worker(uid=number, engine_id=f"e{number}")
        harness.scheduler(uid=100 + number, engine_id=f"e{number}")
    reserved = harness.reserve(DIGESTS[:2], uid=1)
    assert harness.commit(reserved, uid=2).num_accepted == 0
    assert harness.abort(uid=2) == 0
    assert harness.commit(reserved, uid=1).num_accepted == 2


def test_a_write_that_came_too_late_is_refused_and_its_slot_freed(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:2])
    joined.clock.advance(601)
    assert joined.engine.evict_cycle()["writes_expired"] == 2
    assert joined.l1_report["quarantined_count"] == 2
    assert joined.commit(reserved).num_refused == 2
    assert joined.l1_report["memory_used_bytes"] == 0
    assert joined.engine.metrics.refused_commits.value() == joined.engine.metrics.writes_expired.value() == 2


def test_the_root_must_be_that_of_the_engine_now(joined: Harness) -> None:
    stores, l1 = joined.engine.stores, joined.engine.pool.l1
    assert "it was reset" in refusal(stores.reserve, l1, joined.client(1), 1, bytes(32), "", DIGESTS[0], 1)[1]


def test_only_workers_store(joined: Harness) -> None:
    assert refusal(joined.reserve, DIGESTS[:1], 1, 100)[0] == "forbidden"


def test_a_batch_has_a_bound(joined: Harness) -> None:
    stores, l1 = joined.engine.stores, joined.engine.pool.l1
    blob = bytes(65537 * DIGEST_BYTES)
    assert "at most 65536" in refusal(stores.reserve, l1, joined.client(1), 1, joined.root(), "", blob, 1)[1]


@pytest.mark.parametrize("blob", [b"x", bytes(8), bytes(17)])
def test_slots_cut_short_are_refused(joined: Harness, blob: bytes) -> None:
    with pytest.raises(ProtocolError, match="16 bytes each"):
        joined.engine.stores.commit(joined.engine.pool, joined.client(1), 1, blob)


def test_slots_from_nowhere_are_refused_without_harm(joined: Harness) -> None:
    blob = b"".join(number.to_bytes(8, "little") for number in (2**63, 1, 0, 2**64 - 1, 63, 9, 64, 0))
    committed = joined.engine.stores.commit(joined.engine.pool, joined.client(1), 1, blob)
    assert (committed.num_accepted, committed.num_refused) == (0, 4)
    assert joined.l1_report["total_object_count"] == 0


def test_a_full_pool_is_counted(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:17])
    assert list(reserved.statuses).count(ReserveStatus.NO_ROOM) == 1
    assert joined.engine.metrics.l1_allocation_failure.value("l1_store", "org/m") == 1


def test_a_reserve_that_a_registration_overtook_takes_no_slot(joined: Harness) -> None:
    """It would be of a batch the client gave up, and of slots no later registration would name."""
    joined.worker(attempt=2)
    stores, l1 = joined.engine.stores, joined.engine.pool.l1
    late = (l1, joined.client(1), 1, joined.root(), "", b"".join(DIGESTS[:2]), 1)
    assert "overtook" in refusal(stores.reserve, *late)[1]
    assert joined.engine.pool.l1.report()["write_locked_count"] == 0
    assert len(joined.reserve(DIGESTS[:2]).places) > 0
