"""Lookups that L2 lengthens: answered late, locked, and never with bytes that were not stored."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import split_places
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.engine.conftest import CHUNK_SIZE, UNIT_BYTES
from tests.engine.tiered import OpenTiered, Tiered, content, tiered_engines

DIGESTS = [bytes([number]) * 32 for number in range(1, 9)]


@pytest.fixture
def open_tiered(pool_folder: pathlib.Path) -> Iterator[OpenTiered]:
    with tiered_engines(pool_folder) as open_:
        yield open_


def adapter_of(tiered: Tiered) -> MockL2Adapter:
    adapter = tiered.engine.storage.tiers()[0].adapter
    assert isinstance(adapter, MockL2Adapter)
    return adapter


def test_what_left_l1_comes_back_from_l2(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:4])
    tiered.wait_until_stored(4)
    tiered.engine.clear()
    assert tiered.lookup(DIGESTS[:4], "before").num_chunks == 0
    found = tiered.ask(DIGESTS[:6])
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:4])
    tiered.wait_until_at_rest()
    report = tiered.l1_report
    assert (report["read_locked_count"], report["temporary_count"]) == (4, 4)
    tiered.end()
    assert tiered.l1_report["total_object_count"] == 0, "loaded objects go with their reader"


def test_a_retaining_policy_keeps_what_was_loaded(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(prefetch_policy="retain")
    tiered.write(DIGESTS[:3])
    tiered.wait_until_stored(3)
    tiered.engine.clear()
    tiered.assert_bytes(tiered.ask(DIGESTS[:3]), DIGESTS[:3])  # type: ignore[arg-type]
    tiered.wait_until_at_rest()
    tiered.end()
    assert tiered.l1_report["total_object_count"] == 3
    assert tiered.l1_report["read_locked_count"] == 0


def test_the_part_in_l1_and_the_part_in_l2_make_one_prefix(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:6])
    tiered.wait_until_stored(6)
    tiered.engine.clear()
    tiered.write(DIGESTS[:2])
    tiered.write(DIGESTS[4:5])
    tiered.assert_bytes(tiered.ask(DIGESTS), DIGESTS[:6])  # type: ignore[arg-type]


def test_a_miss_is_answered_at_once(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:1])
    tiered.wait_until_stored(1)
    assert tiered.lookup(DIGESTS[3:5]).num_chunks == 0, "the adapter's index knows that it is a miss"


def test_a_chunk_counts_only_with_every_rank(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(world_size=2)
    tiered.write(DIGESTS[:3], uid=1)
    tiered.write(DIGESTS[:2], uid=2)
    tiered.wait_until_stored(5)
    tiered.engine.clear()
    found = tiered.ask(DIGESTS[:3])
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:2], (1, 2))


def test_a_prompt_larger_than_half_the_pool_is_loaded_as_far_as_that(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(units=4)
    for digest in DIGESTS[:6]:
        tiered.write([digest])
        tiered.wait_until_stored(DIGESTS.index(digest) + 1)
    tiered.engine.clear()
    found = tiered.ask(DIGESTS[:6])
    assert isinstance(found, m.Found)
    assert found.num_chunks == 2
    tiered.assert_bytes(found, DIGESTS[:2])


def test_a_hint_brings_it_before_the_lookup(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:3])
    tiered.wait_until_stored(3)
    tiered.engine.clear()
    tiered.lookup(DIGESTS[:3], lock=False)
    wait_until(lambda: tiered.l1_report["temporary_count"] == 3)
    assert tiered.lookup(DIGESTS[:3]).num_chunks == 3, "answered at once, without a wait"
    wait_until(lambda: not tiered.engine.prefetches._outstanding)
    tiered.end()
    wait_until(lambda: tiered.l1_report["total_object_count"] == 0)


def test_a_request_that_ends_meanwhile_is_answered_and_leaves_no_lock(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:2])
    tiered.wait_until_stored(2)
    tiered.engine.clear()
    loads = tiered.hold("load")
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup("r", "", b"".join(DIGESTS[:2]), 60.0), replies) is None
    wait_until(lambda: len(loads.begun) == 2)
    with tiered.engine.mutex:
        tiered.engine.lookups.end_session(tiered.engine.pool.l1, tiered.client(100), "r")
    wait_until(lambda: bool(replies))
    assert replies == [m.Found(0, b"")]
    loads.let_go()
    tiered.wait_until_at_rest()
    report = tiered.l1_report
    assert (report["read_locked_count"], report["write_locked_count"]) == (0, 0)


def test_a_late_tier_costs_no_more_than_the_wait(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:2])
    tiered.wait_until_stored(2)
    tiered.engine.clear()
    loads = tiered.hold("load")
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup("r", "", b"".join(DIGESTS[:2]), 60.0), replies) is None
    wait_until(lambda: len(loads.begun) == 2)
    tiered.clock.advance(60.0)
    wait_until(lambda: bool(replies))
    assert replies == [m.Found(0, b"")]
    loads.let_go()
    tiered.wait_until_at_rest()
    assert tiered.l1_report["total_object_count"] == 2, "it came too late, and stays for the next"
    assert tiered.l1_report["read_locked_count"] == 0
    assert tiered.l1_report["temporary_count"] == 0


def test_skip_l1_lets_go_of_what_l2_has(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(store_policy="skip_l1")
    tiered.write(DIGESTS[:3])
    tiered.wait_until_stored(3)
    wait_until(lambda: tiered.l1_report["total_object_count"] == 0)
    tiered.assert_bytes(tiered.ask(DIGESTS[:3]), DIGESTS[:3])  # type: ignore[arg-type]


def test_an_operators_prefetch_stays(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tokens = list(range(3 * CHUNK_SIZE))
    chains = tiered.engine.prefetches.chains(tiered.engine.prefetches.roots_of("org/m", 1), tokens)
    digests = chains[tiered.root()]
    tiered.write(digests)
    tiered.wait_until_stored(3)
    tiered.engine.clear()
    with tiered.engine.mutex:
        ticket = tiered.engine.prefetch_tokens("org/m", 1, tokens, "")
    assert ticket is not None
    wait_until(lambda: ticket.is_completed)
    assert (ticket.found_keys, ticket.total_keys) == (3, 3)
    tiered.wait_until_at_rest()
    assert tiered.l1_report["read_locked_count"] == 0
    assert tiered.lookup(digests).num_chunks == 3


def test_an_object_overwritten_in_the_pool_never_reaches_l2(open_tiered: OpenTiered) -> None:
    """The source is taken back while a slow adapter has not read it yet."""
    tiered = open_tiered()
    adapter = adapter_of(tiered)
    writes = tiered.hold("_write")
    tiered.write(DIGESTS[:1])
    wait_until(lambda: len(writes.begun) == 1)
    old_places = split_places(tiered.lookup(DIGESTS[:1]).places)
    tiered.end()
    tiered.engine.clear()
    tiered.write(DIGESTS[1:3])
    assert old_places[0][2] in [offset for _, _, offset, _ in split_places(tiered.lookup(DIGESTS[1:3]).places)]
    writes.let_go()
    assert tiered.engine.storage.stores.wait_until_empty(PATIENCE_S)
    held = [key for key, _ in adapter.list_l2_keys(None, 10, None).entries]
    assert {key.chunk_hash for key in held} == set(DIGESTS[1:3])
    for key in held:
        target = bytearray(UNIT_BYTES)
        adapter.load(key, memoryview(target))
        assert bytes(target) == content(key.chunk_hash, 1, UNIT_BYTES)


def test_what_comes_back_through_serdes_is_what_was_stored(open_tiered: OpenTiered, tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first " + "0f" * 32)
    keys.chmod(0o600)
    serdes = [{"type": "zstd"}, {"type": "aesgcm", "key_file": str(keys)}]
    tiered = open_tiered(json.dumps({"type": "memory", "max_size_gb": 1, "serde": serdes}))
    tiered.write(DIGESTS)
    tiered.wait_until_stored(len(DIGESTS))
    tiered.engine.clear(force=True)
    found = tiered.ask(DIGESTS)
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS)
    (status,) = [tier.report() for tier in tiered.engine.storage.tiers()]
    assert status["serde_wrapped"] is True


def test_a_lookup_that_does_not_wait_leaves_what_a_hint_began(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    tiered.write(DIGESTS[:3])
    tiered.wait_until_stored(3)
    tiered.engine.clear()
    loads = tiered.hold("load")
    tiered.lookup(DIGESTS[:3], lock=False)
    wait_until(lambda: tiered.l1_report["write_locked_count"] == 3)
    assert tiered.lookup(DIGESTS[:3]).num_chunks == 0
    loads.let_go()
    wait_until(lambda: tiered.engine.storage.prefetches.report()["completed_results_count"] == 1)
    tiered.assert_bytes(tiered.lookup(DIGESTS[:3]), DIGESTS[:3])
    tiered.wait_until_at_rest()
    tiered.end()
    assert tiered.l1_report["total_object_count"] == 0


def test_a_lookup_that_may_lock_no_more_fetches_no_more(open_tiered: OpenTiered) -> None:
    tiered = open_tiered(units=8)
    tiered.write(DIGESTS[:6])
    tiered.wait_until_stored(6)
    replies: list[m.Reply] = []
    found = tiered.begin(m.Lookup("r", "", b"".join(DIGESTS[:6]), 60.0), replies)
    assert isinstance(found, m.Found), "answered at once"
    tiered.assert_bytes(found, DIGESTS[:4])
    assert tiered.engine.storage.prefetches.num_jobs == 0
    assert tiered.l1_report["read_locked_count"] == 4
