"""Requests that want the same objects of L2 at the same time: each object is loaded once, for all of them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache.protocol import messages as m
from lmcache.testing.waiting import wait_until
from tests.engine.tiered import Held, OpenTiered, Tiered, tiered_engines

DIGESTS = [bytes([number]) * 32 for number in range(1, 9)]
WAIT_S = 600.0
SCHEDULER = 100


@pytest.fixture
def open_tiered(pool_folder: pathlib.Path) -> Iterator[OpenTiered]:
    with tiered_engines(pool_folder) as open_:
        yield open_


def only_in_l2(tiered: Tiered) -> Held:
    """What is in the first tier alone; its loads wait until they are let go."""
    tiered.write(DIGESTS[:4])
    tiered.wait_until_stored(4)
    tiered.engine.clear()
    return tiered.hold("load")


def asked(tiered: Tiered, request: str, digests: list[bytes]) -> list[m.Reply]:
    replies: list[m.Reply] = []
    assert tiered.begin(m.Lookup(request, "", b"".join(digests), WAIT_S), replies) is None
    return replies


def num_awaited(tiered: Tiered, request: str) -> int:
    """Loads that a request waits for, be they another's."""
    job = tiered.engine.storage.prefetches.job((SCHEDULER, request))
    return job.num_loading if job is not None else 0


def test_several_requests_at_once(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    prompts = [DIGESTS[:2], [*DIGESTS[:3], DIGESTS[7]], DIGESTS[:4], DIGESTS[:4]]
    replies = [asked(tiered, f"r{number}", prompt) for number, prompt in enumerate(prompts)]
    wait_until(lambda: len(loads.begun) == 4)
    loads.let_go()
    wait_until(lambda: all(replies))
    for (found,), num_chunks in zip(replies, (2, 3, 4, 4), strict=True):
        assert isinstance(found, m.Found)
        tiered.assert_bytes(found, DIGESTS[:num_chunks])
    assert sorted(key.chunk_hash for key in loads.begun) == DIGESTS[:4]
    tiered.wait_until_at_rest()
    for number in range(len(prompts)):
        assert tiered.l1_report["total_object_count"] == 4, "those that are left still read it"
        tiered.end(f"r{number}")
    report = tiered.l1_report
    assert (report["total_object_count"], report["read_locked_count"], report["write_locked_count"]) == (0, 0, 0)


def test_the_one_that_loads_is_over_first(open_tiered: OpenTiered) -> None:
    """What it began arrives for those that wait for it."""
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    first, second = asked(tiered, "first", DIGESTS[:4]), asked(tiered, "second", DIGESTS[:4])
    wait_until(lambda: len(loads.begun) == 4)
    tiered.end("first")
    wait_until(lambda: bool(first))
    loads.let_go()
    wait_until(lambda: bool(second))
    (found,) = second
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:4])
    tiered.end("second")
    tiered.wait_until_at_rest()
    assert not tiered.l1_report["read_locked_count"]


def test_a_load_that_fails_ends_the_prefix_of_all(open_tiered: OpenTiered, caplog: pytest.LogCaptureFixture) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    objects = tiered.engine.storage.tiers()[0].adapter._objects  # type: ignore[attr-defined]
    rotten = next(key for key in objects if key.chunk_hash == DIGESTS[2])
    objects[rotten] = objects[rotten][:-1] + bytes([objects[rotten][-1] ^ 1])
    replies = [asked(tiered, request, DIGESTS[:4]) for request in ("first", "second")]
    wait_until(lambda: len(loads.begun) == 4)
    loads.let_go()
    wait_until(lambda: all(replies))
    for (found,) in replies:
        assert isinstance(found, m.Found)
        tiered.assert_bytes(found, DIGESTS[:2])
    caplog.clear()  # its records keep the error, whose traceback keeps the pool


def test_a_request_that_waits_for_the_load_of_another_is_answered_in_its_own_time(open_tiered: OpenTiered) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    first = asked(tiered, "first", DIGESTS[:2])
    wait_until(lambda: len(loads.begun) == 2)
    second: list[m.Reply] = []
    assert tiered.begin(m.Lookup("second", "", b"".join(DIGESTS[:2]), WAIT_S / 2), second) is None
    wait_until(lambda: num_awaited(tiered, "second") == 2)
    tiered.clock.advance(WAIT_S / 2)
    wait_until(lambda: bool(second))
    assert second == [m.Found(0, b"")]
    assert not first, "that one has time left"
    loads.let_go()
    wait_until(lambda: bool(first))


def test_nobody_joins_a_load_that_hangs(open_tiered: OpenTiered, monkeypatch: pytest.MonkeyPatch) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    first = asked(tiered, "first", DIGESTS[:2])
    wait_until(lambda: len(loads.begun) == 2)
    monkeypatch.setattr("lmcache.storage.prefetch_loads.STALL_S", 0.0)
    second = asked(tiered, "second", DIGESTS[:2])
    wait_until(lambda: bool(second))
    assert second == [m.Found(0, b"")]
    assert not first
    loads.let_go()
    wait_until(lambda: bool(first))
    for request in ("first", "second"):
        tiered.end(request)
    wait_until(lambda: tiered.engine.storage.prefetches.is_at_rest)


def test_what_cannot_be_committed_leaves_nothing_behind(
    open_tiered: OpenTiered, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiered = open_tiered()
    loads = only_in_l2(tiered)
    l1 = tiered.engine.pool.l1
    commit = l1.commit_loaded
    failures = iter([True])

    def failing(*args: Any, **named: Any) -> Any:
        if next(failures, False):
            raise ZeroDivisionError
        return commit(*args, **named)

    monkeypatch.setattr(l1, "commit_loaded", failing)
    replies = [asked(tiered, request, DIGESTS[:1]) for request in ("first", "second")]
    wait_until(lambda: len(loads.begun) == 1)
    loads.let_go()
    wait_until(lambda: all(replies))
    assert replies == [[m.Found(0, b"")]] * 2
    assert tiered.l1_report["write_locked_count"] == 0
    found = tiered.ask(DIGESTS[:1], "third")
    assert isinstance(found, m.Found)
    tiered.assert_bytes(found, DIGESTS[:1])
    for request in ("first", "second", "third"):
        tiered.end(request)
    wait_until(lambda: tiered.engine.storage.prefetches.is_at_rest)
    caplog.clear()  # its records keep the error, whose traceback keeps the pool


def test_an_object_that_a_worker_writes_meanwhile_is_none_of_the_documented_failures_but_one(
    open_tiered: OpenTiered,
) -> None:
    tiered = open_tiered()
    only_in_l2(tiered).let_go()
    reserved = tiered.reserve(DIGESTS[:1], 7)
    assert tiered.ask(DIGESTS[:2]) == m.Found(0, b"")
    failures = tiered.engine.storage.metrics.prefetch_failure
    assert failures.value("not_found", "org/m") == 1
    assert failures.value("being_written", "org/m") == 0
    assert reserved.places
    tiered.abort(7)
