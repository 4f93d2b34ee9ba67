"""A reset engine never meets its old KV again; removals reach those who asked for events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmcache.errors import RequestRefusedError
from lmcache.protocol.blobs import split_digests
from lmcache.protocol.messages import Ping
from tests.engine.conftest import CHUNK_SIZE, DIGESTS, Harness


def reset(harness: Harness, epoch: bytes = b"\x01", uid: int = 100) -> bytes:
    client = harness.client(uid)
    return harness.engine.management.reset_engine(harness.engine.pool, client, epoch, CHUNK_SIZE).root


def test_a_reset_hides_old_objects_at_once_and_deletes_them_behind(joined: Harness) -> None:
    old_root = joined.root()
    joined.store(DIGESTS[:3])
    assert reset(joined) == joined.root() != old_root
    assert joined.lookup(DIGESTS[:3]).num_chunks == 0
    assert joined.engine.evict_cycle()["deleted_behind"] == 3
    assert joined.l1_report["total_object_count"] == 0


def test_writes_under_way_during_a_reset_are_refused(joined: Harness) -> None:
    reserved = joined.reserve(DIGESTS[:2])
    reset(joined)
    assert joined.l1_report["quarantined_count"] == 2
    assert joined.commit(reserved).num_refused == 2
    assert joined.l1_report["memory_used_bytes"] == 0


def test_an_engine_with_the_same_root_keeps_its_objects_and_its_writes(joined: Harness) -> None:
    joined.worker(uid=2, engine_id="twin")
    joined.scheduler(uid=200, engine_id="twin")
    joined.store(DIGESTS[:2])
    of_twin = joined.reserve(DIGESTS[2:4], uid=2)
    reset(joined)
    assert joined.engine.evict_cycle()["deleted_behind"] == 0
    assert joined.commit(of_twin, uid=2).num_accepted == 2
    assert joined.lookup(DIGESTS[:4], uid=200).num_chunks == 4
    joined.end(uid=200)
    reset(joined, b"\x02", uid=200)
    assert joined.engine.evict_cycle()["deleted_behind"] == 4


def test_objects_that_were_locked_during_a_reset_are_deleted_once_they_are_free(joined: Harness) -> None:
    joined.store(DIGESTS[:4])
    joined.lookup(DIGESTS[:2])
    reset(joined)
    assert [joined.engine.evict_cycle()["deleted_behind"] for _ in range(2)] == [2, 0]
    joined.end()
    assert [joined.engine.evict_cycle()["deleted_behind"] for _ in range(2)] == [2, 0]
    assert joined.l1_report["total_object_count"] == 0


def test_a_root_that_is_in_use_again_is_left_alone(joined: Harness) -> None:
    joined.store(DIGESTS[:2])
    reset(joined)
    joined.worker(uid=2, engine_id="twin")
    joined.scheduler(uid=200, engine_id="twin")
    assert joined.engine.evict_cycle()["deleted_behind"] == 0
    assert joined.lookup(DIGESTS[:2], uid=200).num_chunks == 2


def test_the_same_epoch_is_the_same_root(joined: Harness) -> None:
    assert reset(joined, b"\x07") == reset(joined, b"\x07") != reset(joined, b"\x08")


@pytest.mark.parametrize(("uid", "epoch"), [(1, b"\x01"), (100, b"")])
def test_only_a_scheduler_resets_and_only_with_an_epoch(joined: Harness, uid: int, epoch: bytes) -> None:
    with pytest.raises(RequestRefusedError, match="only a scheduler"):
        reset(joined, epoch, uid)


def test_clear_counts_and_tells(joined: Harness) -> None:
    joined.store(DIGESTS[:3], salt="u1")
    joined.lookup(DIGESTS[:1], salt="u1")
    assert joined.engine.clear(force=False) == 2
    assert joined.engine.clear(force=True) == 1
    assert joined.engine.metrics.l1_evicted.value("u1") == 3


def test_followers_learn_what_left_since_they_asked_and_only_of_their_root(joined: Harness) -> None:
    joined.scheduler(uid=100, wants_events=True)
    joined.store(DIGESTS[:3])
    joined.engine.clear(force=True)
    first = joined.engine.management.ping(joined.client(100), Ping(0, 0))
    assert sorted(split_digests(first.removed)) == DIGESTS[:3]
    again = joined.engine.management.ping(joined.client(100), Ping(0, first.event_cursor))
    assert again.removed == b""
    assert again.event_cursor == first.event_cursor
    reset(joined)
    joined.store(DIGESTS[3:4])
    joined.engine.clear(force=True)
    last = joined.engine.management.ping(joined.client(100), Ping(0, first.event_cursor))
    assert split_digests(last.removed) == DIGESTS[3:4]


def test_the_watermark_loop_brings_usage_down_by_its_ratio(joined: Harness) -> None:
    joined.store(DIGESTS[:10])
    assert joined.engine.evict_cycle()["evicted"] == 0
    joined.engine.config = replace(joined.engine.config, trigger_watermark=0.5)
    assert [joined.engine.evict_cycle()["evicted"] for _ in range(3)] == [2, 0, 0]
    assert joined.lookup(DIGESTS[:10]).num_chunks == 8
