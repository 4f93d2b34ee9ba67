"""The fault adapter: unnoticed at rate 0, and at other rates it fails as often as it says, and always alike."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

import pytest

from lmcache.errors import BackendError, ConfigError, L2Error
from lmcache.l2.base import AdapterContext, Source, StoreStatus
from lmcache.l2.fault_inject.adapter import FaultInjectL2Adapter
from lmcache.l2.fault_inject.config import FaultInjectConfig
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.l2.registry import make_adapter, parse_adapter
from lmcache.testing.l2_backend import make_data, make_key
from lmcache.testing.l2_contract import L2AdapterContract
from lmcache.testing.l2_machine import l2_machine
from lmcache.testing.l2_memory import MemoryBackend

INNER = {"type": "memory", "max_size_gb": 1}
KEYS = [make_key(number) for number in range(10)]


class FaultBackend(MemoryBackend):
    def make(self, context, capacity_bytes):
        return FaultInjectL2Adapter(super().make(context, capacity_bytes), FaultInjectConfig(INNER), "fault_inject")


class TestWithoutFaults(L2AdapterContract):
    @pytest.fixture
    def backend(self):
        return FaultBackend()


TestMachine = l2_machine(FaultBackend).TestCase


class Faulty:
    """A fault adapter on memory, and the delays it made."""

    def __init__(self, **settings: object) -> None:
        self.delays_s: list[float] = []
        inner = MockL2Adapter(MemoryConfig(1), AdapterContext("memory"))
        config = FaultInjectConfig(INNER, **settings)
        self.adapter = FaultInjectL2Adapter(inner, config, "fault_inject", self.delays_s.append)
        for number, key in enumerate(KEYS):
            inner.store(key, Source(memoryview(make_data(number))))

    def load(self, key) -> str:
        """What became of it."""
        target = bytearray(4096)
        try:
            self.adapter.load(key, memoryview(target))
        except L2Error as error:
            return type(error).__name__
        assert target == make_data(KEYS.index(key))
        return "loaded"


def outcomes(num_calls: int = 300, **settings: object) -> list[str]:
    faulty = Faulty(faults=["error"], operations=["load"], **settings)
    return [faulty.load(KEYS[number % len(KEYS)]) for number in range(num_calls)]


def test_the_rate_is_kept():
    counts = Counter(outcomes(1000, rate=0.2))
    assert counts.keys() == {"loaded", "BackendError"}
    assert 150 <= counts["BackendError"] <= 250
    assert set(outcomes(rate=1)) == {"BackendError"}


def test_the_seed_decides_which():
    assert outcomes(rate=0.3, seed=1) == outcomes(rate=0.3, seed=1)
    assert outcomes(rate=0.3, seed=1) != outcomes(rate=0.3, seed=2)


def test_other_calls_do_not_change_which():
    quiet, busy = (Faulty(rate=0.3, operations=["load", "lookup"]) for _ in range(2))
    with_lookups = []
    for number in range(100):
        with contextlib.suppress(BackendError):
            busy.adapter.lookup(KEYS)
        with_lookups.append(busy.load(KEYS[number % 10]))
    assert with_lookups == [quiet.load(KEYS[number % 10]) for number in range(100)]


def test_only_the_operations_named_fail():
    faulty = Faulty(rate=1, operations=["store"])
    assert faulty.adapter.lookup(KEYS) == [True] * len(KEYS)
    assert faulty.load(KEYS[0]) == "loaded"
    with pytest.raises(BackendError, match="on purpose"):
        faulty.adapter.store(make_key(99), Source(memoryview(make_data(1))))
    faulty.adapter.release(KEYS)
    assert faulty.adapter.delete(KEYS[:1]).deleted == KEYS[:1]


def test_delays_delay_and_nothing_else():
    faulty = Faulty(rate=1, faults=["delay"], delay_s=0.25)
    assert faulty.load(KEYS[0]) == "loaded"
    assert faulty.adapter.lookup(KEYS[:1]) == [True]
    assert faulty.delays_s == [0.25, 0.25]


@pytest.mark.parametrize(("fault", "error"), [("corrupt", "CorruptObjectError"), ("missing", "ObjectMissingError")])
def test_an_object_that_is_lost_on_purpose_is_gone(fault, error):
    faulty = Faulty(rate=1, faults=[fault])
    assert faulty.adapter.lookup(KEYS[:1]) == [True]
    assert faulty.load(KEYS[0]) == error
    assert faulty.adapter.lookup(KEYS[:2]) == [False, True]
    assert faulty.adapter.store(KEYS[0], Source(memoryview(make_data(0)))) is StoreStatus.STORED
    with pytest.raises(L2Error):
        faulty.adapter.load_whole(KEYS[1])


def test_gaps_in_lookups():
    faulty = Faulty(gap_indices=[1, 20], gap_tail_ratios=[0.5, 1.0])
    found = faulty.adapter.lookup(KEYS)
    assert [position for position, is_held in enumerate(found) if not is_held] == [0, 1, 5]
    assert set(faulty.adapter.delete(KEYS).deleted) == {KEYS[0], KEYS[1], KEYS[5]}, "a gap holds no lease"
    assert faulty.adapter.lookup([]) == []


def test_the_status_counts_the_faults():
    faulty = Faulty(rate=1)
    faulty.load(KEYS[0])
    status = faulty.adapter.report_status()
    assert status["injected_fault_count"] == {"load_error": 1}
    assert (status["type"], status["inner_type"]) == ("FaultInjectL2Adapter", "MockL2Adapter")


def test_it_is_made_from_settings():
    given = {"type": "fault_inject", "rate": 0.5, "inner": {**INNER, "serde": {"type": "zstd"}}}
    adapter = make_adapter(parse_adapter(json.dumps(given), "#1"), AdapterContext("fault_inject"))
    assert (adapter.type_name, adapter.class_name) == ("fault_inject", "FaultInjectL2Adapter")
    assert adapter.report_status()["serde_wrapped"] is True


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "missing field 'inner'"),
        ({"inner": "memory"}, "inner must be an adapter"),
        ({"inner": {"type": "nothing"}}, "inner: unknown type 'nothing'"),
        ({"inner": {"type": "memory"}}, "inner: missing field 'max_size_gb'"),
        ({"inner": INNER, "rate": 1.5}, "rate must be at most 1"),
        ({"inner": INNER, "rate": -1}, "rate must be a number of at least 0"),
        ({"inner": INNER, "seed": "x"}, "seed must be a whole number"),
        (
            {"inner": INNER, "faults": ["fire"]},
            "faults must be a list of at least one of error, delay, missing, corrupt",
        ),
        ({"inner": INNER, "faults": []}, "faults must be a list of at least one"),
        ({"inner": INNER, "operations": "load"}, "operations must be a list of at least one of store, lookup, load"),
        ({"inner": INNER, "gap_indices": [-1]}, "gap_indices must be a whole number of at least 0"),
        ({"inner": INNER, "gap_indices": 1}, "gap_indices must be a list"),
        ({"inner": INNER, "gap_tail_ratios": [2]}, "gap_tail_ratios must be above 0 and at most 1"),
        ({"inner": INNER, "delay_s": -1}, "delay_s must be a number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ConfigError) as caught:
        parse_adapter(json.dumps({"type": "fault_inject", **settings}), "#1")
    assert str(caught.value).startswith("#1: ")
    assert text in str(caught.value)
