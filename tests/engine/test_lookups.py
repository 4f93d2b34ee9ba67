"""Lookups: what is promised, what is locked, what an abort leaves."""

from __future__ import annotations

import pytest

from lmcache.errors import KeyFormatError, ProtocolError, RequestRefusedError
from tests.engine.conftest import DIGESTS, UNIT_BYTES, Harness


def test_the_longest_prefix_is_found_and_a_gap_ends_it(joined: Harness) -> None:
    joined.store([*DIGESTS[:3], *DIGESTS[4:6]])
    assert joined.lookup(DIGESTS[:6]).num_chunks == 3
    assert joined.lookup(DIGESTS[7:9]).num_chunks == 0
    assert joined.lookup([]).num_chunks == 0


def test_a_hit_counts_only_where_every_rank_has_it(harness: Harness) -> None:
    harness.worker(uid=1, rank=0, world_size=2)
    harness.worker(uid=2, rank=1, world_size=2)
    harness.scheduler(world_size=2)
    harness.store(DIGESTS[:4], uid=1)
    assert harness.lookup(DIGESTS[:4]).num_chunks == 0
    harness.store(DIGESTS[:3], uid=2)
    found = harness.lookup(DIGESTS[:4])
    assert found.num_chunks == 3
    assert len(found.places) == 3 * 2 * 32


def test_tenants_do_not_find_each_other(joined: Harness) -> None:
    joined.store(DIGESTS[:2], salt="u1")
    assert [joined.lookup(DIGESTS[:2], salt=salt).num_chunks for salt in ("u1", "u2", "")] == [2, 0, 0]


def test_a_hint_takes_no_lock_and_no_session(joined: Harness) -> None:
    joined.store(DIGESTS[:2])
    assert joined.lookup(DIGESTS[:2], lock=False).num_chunks == 2
    assert joined.l1_report["read_locked_count"] == 0
    assert len(joined.engine.sessions) == 0


def test_an_engine_that_is_not_whole_is_told_who_is_missing(harness: Harness) -> None:
    harness.scheduler(world_size=2)
    with pytest.raises(RequestRefusedError, match=r"ranks \[0, 1\] have not registered") as refused:
        harness.lookup(DIGESTS[:1])
    assert refused.value.code == "not_ready"
    harness.worker(engine_id="other")
    with pytest.raises(RequestRefusedError, match="its scheduler has not registered"):
        harness.lookup(DIGESTS[:1], uid=1)


def test_digests_cut_short_and_bad_salts_are_refused_without_a_lock(joined: Harness) -> None:
    joined.store(DIGESTS[:1])
    with pytest.raises(ProtocolError, match="32 bytes each"):
        joined.lookup([b"short"])
    with pytest.raises(KeyFormatError):
        joined.lookup(DIGESTS[:1], salt="a/b")
    assert joined.l1_report["read_locked_count"] == 0
    assert len(joined.engine.sessions) == 0


def test_ten_thousand_aborted_requests_leave_no_lock(joined: Harness) -> None:
    joined.store(DIGESTS[:8])
    for number in range(10_000):
        request = f"r{number}"
        joined.lookup(DIGESTS[: number % 9], request)
        if number % 3:
            joined.release(request, number % 4)
        joined.end(request)
    assert joined.l1_report["read_locked_count"] == 0
    assert joined.engine.sessions.locked_bytes(100) == len(joined.engine.sessions) == 0
    assert joined.l1_report["memory_used_bytes"] == 8 * UNIT_BYTES


def test_hits_are_counted_in_tokens(joined: Harness) -> None:
    joined.store(DIGESTS[:2], salt="u1")
    joined.lookup(DIGESTS[:3], salt="u1")
    metrics = joined.engine.metrics
    assert metrics.lookup_requested.value("org/m", "u1") == 48
    assert metrics.lookup_hit.value("org/m", "u1") == 32
