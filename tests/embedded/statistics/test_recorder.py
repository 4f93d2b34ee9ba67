"""The recorder: what it counts, when it ends by itself, and that nothing behind it holds a lookup up."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache.core.hashing import PrefixChain
from lmcache.embedded.statistics.counter import hash_tail
from lmcache.embedded.statistics.limits import AutoExitLimits
from lmcache.embedded.statistics.memory_bloom_filter import MemoryBloomFilter
from lmcache.embedded.statistics.record_queue import RecordQueue
from lmcache.embedded.statistics.recorder import THREAD_NAME, ChunkStatisticsRecorder
from lmcache.errors import LMCacheError
from lmcache.testing.waiting import wait_until
from tests.conftest import FakeClock
from tests.embedded.statistics.site import ALGORITHM, ROOT, HeldStrategy, counted, prompt_of, recording

_PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a close still counts does not hang on how soon the thread that counts has its turn."""
    monkeypatch.setattr("lmcache.embedded.statistics.recorder._CLOSE_WAIT_S", _PATIENCE_S)


@pytest.mark.parametrize("hashes_early", [False, True])
def test_documented_figures(hashes_early: bool) -> None:
    with recording(hashes_early=hashes_early) as recorder:
        for lookup_id, num_tokens in (("r1", 600), ("r1", 600), ("r2", 512)):
            recorder.record(lookup_id, prompt_of(num_tokens), 0.001)
        status = counted(recorder)
    assert {key: status[key] for key in ("total_requests", "total_chunks", "unique_chunks", "duplicate_chunks")} == {
        "total_requests": 2, "total_chunks": 5, "unique_chunks": 3, "duplicate_chunks": 2,
    }  # fmt: skip
    assert status["reuse_rate"] == 0.4
    assert status["bloom_filter"]["item_count"] == 3


@pytest.mark.parametrize(
    ("other", "num_unique"),
    [
        (prompt_of(600), 3),
        (prompt_of(601), 4),  # another tail
        (prompt_of(600, extra=b"an image"), 4),
        (prompt_of(600, salt="tenant"), 6),
        (prompt_of(600, first_token=1), 6),
        (prompt_of(88), 4),
    ],
)
def test_what_makes_a_chunk_another(other: object, num_unique: int) -> None:
    with recording() as recorder:
        recorder.record("r1", prompt_of(600), 0.0)
        recorder.record("r2", other, 0.0)  # type: ignore[arg-type]
        assert counted(recorder)["unique_chunks"] == num_unique


LOOKUPS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, 1100), st.sampled_from(["", "tenant"])), max_size=12
)


@settings(max_examples=30)
@given(LOOKUPS, st.booleans())
def test_figures_are_those_of_a_plain_count(lookups: list[tuple[str, int, str]], hashes_early: bool) -> None:
    ids: set[str] = set()
    seen: set[tuple[str, int, int]] = set()
    num_chunks = 0
    with recording(MemoryBloomFilter(1000, 1e-9), hashes_early=hashes_early) as recorder:
        for lookup_id, num_tokens, salt in lookups:
            recorder.record(lookup_id, prompt_of(num_tokens, salt), 0.0)
            if lookup_id not in ids:
                ids.add(lookup_id)
                chunks = [(salt, start, min(start + 256, num_tokens)) for start in range(0, num_tokens, 256)]
                num_chunks += len(chunks)
                seen |= set(chunks)
        status = counted(recorder)
    assert (status["total_requests"], status["total_chunks"]) == (len(ids), num_chunks)
    assert (status["unique_chunks"], status["duplicate_chunks"]) == (len(seen), num_chunks - len(seen))


def test_status_has_every_documented_key(clock: FakeClock) -> None:
    with recording(
        capacity=10, limits=lambda: AutoExitLimits(1.5, 7), clock=clock, wall_clock=FakeClock(5.5)
    ) as recorder:
        recorder.record("r1", prompt_of(600), 0.25)
        status = counted(recorder)
    assert status["enabled"] is status["is_collecting"] is True
    assert status["timestamp"] == 5.5
    assert status["timing"] == {
        "lookup_time_seconds": 0.25, "record_statistics_time_seconds": 0.0, "check_exit_conditions_time_seconds": 0.0,
        "total_time_seconds": 0.25, "overhead_time_seconds": 0.0, "overhead_percentage": 0.0,
    }  # fmt: skip
    assert status["async_queue"] == {
        "capacity": 10, "current_size": 0, "max_size_reached": 1, "full_blocks": 0, "utilization": 0.0,
        "failed_records": 0,
    }  # fmt: skip
    assert status["bloom_filter"].keys() == {
        "size_mb", "hash_count", "item_count", "bits_set", "fill_rate", "expected_elements", "false_positive_rate",
    }  # fmt: skip
    assert (status["auto_exit_enabled"], status["auto_exit_timeout_hours"]) == (True, 1.5)
    assert status["auto_exit_target_unique_chunks"] == 7


def test_nothing_counted_yet() -> None:
    recorder = ChunkStatisticsRecorder(HeldStrategy(), ALGORITHM, 5, AutoExitLimits)
    recorder.record("r1", prompt_of(600), 0.0)
    recorder.reset()
    recorder.stop()
    status = recorder.status()
    assert (status["enabled"], status["total_requests"], status["reuse_rate"]) == (False, 0, 0.0)
    assert status["auto_exit_enabled"] is False
    recorder.close()


def test_stop_and_start_go_on_counting() -> None:
    with recording() as recorder:
        recorder.record("r1", prompt_of(512), 0.0)
        recorder.stop()
        recorder.record("r2", prompt_of(512), 0.0)
        recorder.start()
        recorder.record("r3", prompt_of(512), 0.0)
        status = counted(recorder)
        assert (status["total_requests"], status["unique_chunks"]) == (2, 2)


def test_ends_by_itself_when_its_time_is_over(clock: FakeClock) -> None:
    """The time runs from the first lookup, and a limit that changes acts at once."""
    limits = [AutoExitLimits(timeout_hours=1.0)]
    with recording(limits=lambda: limits[0], clock=clock) as recorder:
        clock.advance(7200)
        recorder.record("r1", prompt_of(512), 0.0)
        clock.advance(3599)
        recorder.record("r2", prompt_of(512), 0.0)
        assert counted(recorder)["is_collecting"]  # the thread that counts looks at the limits, too
        limits[0] = AutoExitLimits(timeout_hours=0.5)
        recorder.record("r3", prompt_of(512), 0.0)
        wait_until(lambda: not recorder.is_collecting)
        recorder.record("r4", prompt_of(512), 0.0)
        assert counted(recorder)["total_requests"] == 3
        recorder.start()
        clock.advance(7200)
        recorder.record("r4", prompt_of(512), 0.0)
        assert counted(recorder)["total_requests"] == 4
        assert recorder.is_collecting


def test_ends_by_itself_when_it_has_seen_enough() -> None:
    with recording(limits=lambda: AutoExitLimits(target_unique_chunks=3)) as recorder:
        recorder.record("r1", prompt_of(512), 0.0)
        assert counted(recorder)["is_collecting"]
        recorder.record("r2", prompt_of(600), 0.0)
        wait_until(lambda: not recorder.is_collecting)
        recorder.record("r3", prompt_of(1024), 0.0)
        status = counted(recorder)
    assert (status["total_requests"], status["unique_chunks"], status["enabled"]) == (2, 3, False)


def test_a_full_queue_drops_and_counts() -> None:
    """A lookup that was dropped is counted when it is made again."""
    strategy = HeldStrategy()
    with recording(strategy, capacity=2) as recorder:
        strategy.may_count.clear()
        for number in range(5):
            recorder.record(f"r{number}", prompt_of(512), 0.0)
        queue = recorder.status()["async_queue"]
        assert isinstance(queue, dict)
        assert (queue["current_size"], queue["max_size_reached"], queue["full_blocks"]) == (2, 2, 3)
        assert queue["utilization"] == 1.0
        strategy.may_count.set()
        assert counted(recorder)["total_requests"] == 2
        recorder.record("r4", prompt_of(512), 0.0)
        assert counted(recorder)["total_requests"] == 3
    assert strategy.counted == ["r0", "r1", "r4"]


def test_the_queue_is_bounded_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache.embedded.statistics.record_queue._WAITING_CHUNKS_MAX", 5)
    strategy = HeldStrategy()
    with recording(strategy) as recorder:
        strategy.may_count.clear()
        for lookup_id, num_tokens in (("long", 8 * 256), ("r2", 256)):
            recorder.record(lookup_id, prompt_of(num_tokens), 0.0)
        strategy.may_count.set()
        assert counted(recorder)["total_requests"] == 1
    assert strategy.counted == ["long"]  # whatever its length, it has the queue to itself


def test_orders_find_room_in_a_full_queue() -> None:
    strategy = HeldStrategy()
    with recording(strategy, capacity=1) as recorder:
        strategy.may_count.clear()
        recorder.record("r1", prompt_of(512), 0.0)
        with pytest.raises(LMCacheError, match=r"still being counted after 0\.01 s"):
            recorder.reset(wait_s=0.01)
        strategy.may_count.set()
        recorder.reset(_PATIENCE_S)
        assert recorder.status()["total_requests"] == 0


def test_reset_begins_at_nothing() -> None:
    with recording() as recorder:
        recorder.record("r1", prompt_of(600), 1.0)
        recorder.reset(_PATIENCE_S)
        status = recorder.status()
        assert (status["total_requests"], status["unique_chunks"], status["is_collecting"]) == (0, 0, True)
        assert status["timing"] == dict.fromkeys(status["timing"], 0.0)  # type: ignore[call-overload]
        recorder.record("r1", prompt_of(600), 0.0)
        assert counted(recorder)["unique_chunks"] == 3


def test_resets_under_load_leave_whole_figures() -> None:
    """Whatever is recorded meanwhile: after the last reset, exactly what came later is counted."""
    strategy = MemoryBloomFilter(10_000, 0.001)
    is_over = threading.Event()
    # A reset waits for all that was recorded before, while three threads leave the one that counts little time.
    with recording(strategy, capacity=10) as recorder:

        def load(worker: int) -> None:
            number = 0
            while not is_over.is_set():
                recorder.record(f"{worker}-{number}", prompt_of(512, first_token=number % 7), 0.0)
                number += 1

        workers = [threading.Thread(target=load, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(20):
                recorder.reset(_PATIENCE_S)
                status = recorder.status()
                assert status["total_chunks"] == 2 * status["total_requests"]  # type: ignore[operator]
        finally:
            is_over.set()
            for worker in workers:
                worker.join()
        recorder.reset(_PATIENCE_S)
        recorder.record("last", prompt_of(600), 0.0)
        status = counted(recorder)
    assert (status["total_requests"], status["unique_chunks"]) == (1, 3)


def test_many_threads_count_each_lookup_once() -> None:
    with recording(capacity=10_000) as recorder:

        def look_up_all() -> None:
            for number in range(200):
                recorder.record(f"r{number}", prompt_of(256, first_token=number), 0.0)

        threads = [threading.Thread(target=look_up_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = counted(recorder)
    assert (status["total_requests"], status["total_chunks"]) == (200, 200)


def test_two_threads_at_once_count_a_lookup_once() -> None:
    """The second one comes when the first has found the id unknown, and has not yet put it into the queue."""
    second_times = [5.0, 5.0]

    def wall_clock() -> float:
        if second_times:
            at_s = second_times.pop()
            recorder.record("r1", prompt_of(256), 0.0)
            return at_s
        return 5.0

    with recording(wall_clock=wall_clock) as recorder:
        recorder.record("r1", prompt_of(256), 0.0)
        assert counted(recorder)["total_requests"] == 1


@pytest.mark.parametrize("num_tokens", [88, 600])
def test_the_tail_is_hashed_as_the_engine_hashes_it(num_tokens: int) -> None:
    hashed = hash_tail(prompt_of(num_tokens, extra=b"an image"), ALGORITHM)
    chain = PrefixChain(ALGORITHM, ROOT, 256)
    chain.extend(range(num_tokens))
    tail = chain.tail_digest(range(num_tokens // 256 * 256, num_tokens), b"an image")
    assert hashed.digests == (*chain.digests, tail)
    assert hashed.tail is None
    assert hash_tail(hashed, ALGORITHM) is hashed


def test_a_record_that_cannot_be_counted_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    strategy = HeldStrategy()
    with recording(strategy) as recorder:
        strategy.error = MemoryError("no room")
        recorder.record("r1", prompt_of(512), 0.0)
        recorder.record("r2", prompt_of(512), 0.0)
        assert counted(recorder)["async_queue"]["failed_records"] == 2
        strategy.error = None
        recorder.record("r3", prompt_of(512), 0.0)
        assert counted(recorder)["total_requests"] == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("hashes_early", [False, True])
def test_tokens_that_cannot_be_hashed_do_not_reach_the_lookup(hashes_early: bool) -> None:
    with recording(hashes_early=hashes_early) as recorder:
        recorder.record("r1", prompt_of(10, first_token=-20), 0.0)
        assert counted(recorder)["async_queue"]["failed_records"] == 1


def test_known_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache.embedded.statistics.recorder._KNOWN_IDS_MAX", 2)
    with recording() as recorder:
        for lookup_id in ("r1", "r2", "r3", "r3", "r2", "r1"):
            recorder.record(lookup_id, prompt_of(256), 0.0)
        assert counted(recorder)["total_requests"] == 4


@pytest.mark.parametrize("is_lasting", [False, True])
def test_close_counts_what_leaves_a_trace(is_lasting: bool) -> None:
    strategy = HeldStrategy(is_lasting)
    with recording(strategy) as recorder:
        strategy.may_count.clear()
        for number in range(3):
            recorder.record(f"r{number}", prompt_of(256), 0.0)
        closing = threading.Thread(target=recorder.close)
        closing.start()
        wait_until(lambda: not recorder.is_collecting)
        strategy.may_count.set()
        closing.join()
    assert strategy.is_closed
    assert len(strategy.counted) == 3 if is_lasting else len(strategy.counted) <= 1
    recorder.start()
    assert not recorder.is_collecting


def test_close_leaves_a_thread_that_hangs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("lmcache.embedded.statistics.recorder._CLOSE_WAIT_S", 0.01)
    strategy = HeldStrategy(is_lasting=True)
    with recording(strategy) as recorder:
        strategy.may_count.clear()
        recorder.record("r1", prompt_of(256), 0.0)
        recorder.record("r2", prompt_of(256), 0.0)
        recorder.close()
        assert "left behind" in caplog.text
    wait_until(lambda: strategy.is_closed)
    assert strategy.counted == ["r1"]


def test_the_thread_is_there_only_once_needed() -> None:
    def is_there() -> bool:
        return any(thread.name == THREAD_NAME for thread in threading.enumerate())

    recorder = ChunkStatisticsRecorder(HeldStrategy(), ALGORITHM, 5, AutoExitLimits)
    assert not is_there()
    recorder.start()
    assert is_there()
    recorder.close()
    assert not is_there()


def test_an_empty_queue_uses_nothing() -> None:
    assert RecordQueue(4).figures()["utilization"] == 0.0
