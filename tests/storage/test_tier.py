"""A tier: every job is answered, reads pass stores, failures open the breaker, a close drains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, BreakerOpenError, CorruptObjectError, ObjectMissingError
from lmcache.l2.base import AdapterContext, L2Adapter, Loaded, Source, StoreStatus, Usage
from lmcache.storage.breaker import BreakerConfig, BreakerState
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier, TierConfig
from lmcache.storage.tier_life import TierState
from lmcache.telemetry.metrics import Counter, MetricRegistry
from lmcache.testing.waiting import PATIENCE_S, wait_until
from tests.conftest import FakeClock

KEYS = [ObjectKey(bytes([number]) * 32, "m", 1) for number in range(8)]
SOON = 1e12


class ScriptedAdapter(L2Adapter):
    """Does what a test tells it: `behave` is called with the call's name before anything else."""

    def __init__(self, num_threads: int = 2) -> None:
        super().__init__(AdapterContext("scripted"))
        self.num_threads = num_threads
        self.behave: Callable[[str], None] = lambda call: None
        self.calls: list[str] = []
        self.objects: dict[ObjectKey, bytes] = {}
        self.released: list[ObjectKey] = []
        self.is_closed = False

    def _do(self, call: str) -> None:
        self.calls.append(call)
        self.behave(call)

    def open(self) -> None:
        self._do("open")

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        self._do("store")
        self.objects[key] = bytes(source.data)
        return StoreStatus.STORED

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        self._do("lookup")
        return [key in self.objects for key in keys]

    def release(self, keys: Sequence[ObjectKey]) -> None:
        self.released += keys

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        self._do("load")
        if key not in self.objects:
            raise ObjectMissingError("gone")
        target[:] = self.objects[key]
        return Loaded(len(target))

    def usage(self) -> Usage:
        return Usage()

    def close(self) -> None:
        self.is_closed = True


class Answers:
    """Collects what a tier answers."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._came = threading.Semaphore(0)

    def __call__(self, value: object) -> None:
        self.values.append(value)
        self._came.release()

    def wait(self, count: int = 1) -> list[object]:
        for _ in range(count):
            assert self._came.acquire(timeout=PATIENCE_S), "no answer came"
        return self.values


MakeTier = Callable[..., tuple[Tier, ScriptedAdapter]]


@pytest.fixture
def make_tier() -> Iterator[MakeTier]:
    tiers: list[Tier] = []

    def make(
        config: TierConfig = TierConfig(),
        num_threads: int = 2,
        start: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> tuple[Tier, ScriptedAdapter]:
        adapter = ScriptedAdapter(num_threads)
        metrics = StorageMetrics(MetricRegistry(), Counter("a", ""), Counter("b", ""))
        tier = Tier(0, adapter, metrics, config, clock)
        tiers.append(tier)
        if start:
            tier.start()
            assert tier.wait_until_open(PATIENCE_S)
        return tier, adapter

    yield make
    for tier in tiers:
        tier.close(1.0)


def source(content: bytes = b"kv") -> Source:
    return Source(memoryview(content))


def fail(call: str) -> None:
    raise BackendError("no route")


def test_stores_lookups_and_loads_are_answered(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    answers = Answers()
    assert tier.submit_store(KEYS[0], source(), answers)
    assert answers.wait() == [StoreStatus.STORED]
    tier.submit_lookup(KEYS[:2], answers, SOON)
    assert answers.wait()[-1] == [True, False]
    target = bytearray(2)
    tier.submit_load(KEYS[0], memoryview(target), answers)
    assert answers.wait()[-1] == Loaded(2)
    assert bytes(target) == b"kv"
    assert adapter.released == [KEYS[0]], "the lease of a load ends with it"


@pytest.mark.parametrize(
    "error", [BackendError("x"), ObjectMissingError("x"), CorruptObjectError("x"), ZeroDivisionError()]
)
def test_whatever_an_adapter_raises_is_an_answer(make_tier: MakeTier, error: Exception) -> None:
    tier, adapter = make_tier()

    def behave(call: str) -> None:
        raise error

    adapter.behave = behave
    answers = Answers()
    tier.submit_load(KEYS[0], memoryview(bytearray(2)), answers)
    tier.submit_lookup(KEYS[:2], answers, SOON)
    tier.submit_store(KEYS[0], source(), answers)
    answers.wait(3)
    assert sorted(map(str, answers.values)) == ["None", "None", "[False, False]"]


def test_a_failing_backend_is_left_alone_and_answers_go_on(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(TierConfig(breaker=BreakerConfig(failures_max=2, pause_s=60)))
    adapter.behave = fail
    answers = Answers()
    for _ in range(2):
        tier.submit_lookup(KEYS[:1], answers, SOON)
        answers.wait()
    assert tier.breaker.state is BreakerState.OPEN
    assert not tier.is_usable
    num_calls = len(adapter.calls)
    tier.submit_lookup(KEYS[:1], answers, SOON)
    assert answers.wait()[-1] == [False]
    assert len(adapter.calls) == num_calls
    with pytest.raises(BreakerOpenError, match="left alone after failures: no route"):
        tier.call(lambda own: own.usage())
    assert tier.report()["is_healthy"] is False
    assert tier.report()["last_error"] == "no route"


def test_reads_go_before_stores_and_a_thread_is_kept_for_them(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(num_threads=2)
    blocked, stores, reads = threading.Event(), Answers(), Answers()
    adapter.behave = lambda call: blocked.wait(2 * PATIENCE_S) if call == "store" else None  # type: ignore[assignment]
    for key in KEYS[:4]:
        assert tier.submit_store(key, source(), stores)
    tier.submit_lookup(KEYS[:1], reads, SOON)
    assert reads.wait() == [[False]], "though stores fill every other thread"
    blocked.set()
    stores.wait(4)


def test_a_full_queue_refuses_and_answers_nothing(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(TierConfig(queued_stores_max=2), num_threads=2)
    blocked, answers = threading.Event(), Answers()
    adapter.behave = lambda call: blocked.wait(2 * PATIENCE_S)  # type: ignore[assignment]
    taken = 0
    while tier.submit_store(KEYS[0], source(), answers) and taken < 100:
        taken += 1
        time.sleep(0.01)
    assert 2 <= taken <= 3
    blocked.set()
    answers.wait(taken)
    assert len(answers.values) == taken


def test_a_lookup_whose_time_is_over_leases_nothing(make_tier: MakeTier, clock: FakeClock) -> None:
    tier, adapter = make_tier(clock=clock)
    adapter.objects[KEYS[0]] = b"kv"
    answers = Answers()
    tier.submit_lookup(KEYS[:1], answers, clock() - 1)
    assert answers.wait() == [[False]]
    assert adapter.calls == ["open"]
    adapter.behave = lambda call: clock.advance(2)
    tier.submit_lookup(KEYS[:1], answers, clock() + 1)
    assert answers.wait()[-1] == [False]
    assert adapter.released == [KEYS[0]], "found too late: the lease was given back"


def test_a_close_finishes_what_was_taken(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    adapter.behave = lambda call: time.sleep(0.02)
    answers = Answers()
    for key in KEYS[:5]:
        assert tier.submit_store(key, source(), answers)
    tier.close(PATIENCE_S)
    assert answers.wait(5) == [StoreStatus.STORED] * 5
    assert adapter.is_closed
    assert not tier.submit_store(KEYS[6], source(), answers)
    tier.submit_lookup(KEYS[:1], answers, SOON)
    assert answers.wait()[-1] == [False], "a closed tier still answers"


def test_a_close_answers_what_it_cannot_finish(make_tier: MakeTier) -> None:
    tier, adapter = make_tier()
    blocked, answers = threading.Event(), Answers()
    adapter.behave = lambda call: blocked.wait(2 * PATIENCE_S)  # type: ignore[assignment]
    for key in KEYS[:4]:
        tier.submit_load(key, memoryview(bytearray(2)), answers)
    wait_until(lambda: adapter.calls.count("load") == 2)
    closing = threading.Thread(target=tier.close, args=(0.1,))
    closing.start()
    answers.wait(2)
    assert answers.values == [None, None], "those that waited were told"
    blocked.set()
    closing.join()
    answers.wait(2)
    assert len(answers.values) == 4


def test_a_backend_that_is_away_at_the_start_is_opened_later(
    make_tier: MakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache.storage.tier_life._OPEN_RETRY_S", (0.01, 0.01))
    tier, adapter = make_tier(start=False)
    failures, is_back = iter([True]), threading.Event()

    def behave(call: str) -> None:
        if next(failures, False):
            raise BackendError("not yet")
        if call == "open":
            assert is_back.wait(2 * PATIENCE_S)

    adapter.behave = behave
    tier.start()
    wait_until(lambda: adapter.calls == ["open", "open"])
    assert not tier.wait_until_open(0.0)
    answers = Answers()
    tier.submit_lookup(KEYS[:1], answers, SOON)
    assert answers.wait() == [[False]], "a miss meanwhile"
    with pytest.raises(BreakerOpenError, match="opening: not yet"):
        tier.call(lambda own: own.usage())
    is_back.set()
    assert tier.wait_until_open(PATIENCE_S)
    assert adapter.calls == ["open", "open"]


def test_an_adapter_that_cannot_be_opened_is_not_used(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(start=False)
    adapter.behave = lambda call: 1 / 0  # type: ignore[assignment, return-value]
    tier.start()
    assert not tier.wait_until_open(PATIENCE_S)
    assert tier.state is TierState.FAILED
    assert not tier.submit_store(KEYS[0], source(), Answers())


def test_a_tier_that_was_never_started_closes(make_tier: MakeTier) -> None:
    tier, adapter = make_tier(start=False)
    tier.close(1.0)
    assert adapter.is_closed
