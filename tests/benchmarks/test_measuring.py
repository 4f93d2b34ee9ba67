"""How the benchmarks in a real vLLM come from what was measured to verdicts. Needs no vLLM."""

from __future__ import annotations

import pytest

from benchmarks import embedded_start
from benchmarks.hook_times import HookTimes, p99_row, share_rows
from benchmarks.vllm_hits import in_turns
from lmcache.core.sizes import GIB
from lmcache.memory.room import Room


def test_rivals_take_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = in_turns({"a": lambda: take("a"), "b": lambda: take("b")}, {"c": lambda: take("c")}, rounds=2, warm_up=1)

    assert "".join(order) == "abbacbaabcabbac"
    assert found == {"a": [7.5, 12.5], "b": [7.5, 12.5], "c": [10.0, 15.0]}


def hook_times(hook_s: float, cpu_s: float) -> HookTimes:
    return HookTimes({"load": [hook_s], "save": [hook_s] * 3}, cpu_s, [1.0, 3.0])


def test_time_in_hooks_is_a_share_of_all_steps() -> None:
    steps, wall, cpu = share_rows("decode", hook_times(0.01, 0.1))

    assert (steps.name, steps.value) == ("decode: 2 steps", "2000.0 ms each")
    assert (wall.value, wall.is_met) == ("1.00%", True)
    assert (cpu.value, cpu.is_met) == ("2.50%", False)


def test_what_is_not_judged_has_no_target() -> None:
    rows = share_rows("decode", hook_times(0.5, 2.0), is_judged=False)

    assert [(row.target, row.is_met) for row in rows] == [("", None)] * 3


def test_cost_of_measuring_is_taken_off() -> None:
    times = hook_times(0.01, 0.1)
    times.empty_cpu_s = 0.02

    assert times.cpu_share == pytest.approx((0.1 - 4 * 0.02) / 4)


def test_highest_percentile_is_that_of_one_hook() -> None:
    times = HookTimes({"often": [0.001] * 99 + [0.5], "slow": [0.002] * 3})

    assert times.worst() == ("slow", 0.002)
    assert p99_row("decode", times, 1.0).is_met is False
    assert p99_row("decode", times, 2.0).is_met is True
    assert p99_row("decode", times).is_met is None


@pytest.mark.parametrize(("free_gib", "pool_gib"), [(100, 5.0), (6.25, 5.0), (4, 3.2)])
def test_pool_is_the_default_one_or_what_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], free_gib: float, pool_gib: float
) -> None:
    monkeypatch.setattr(embedded_start, "measure_room", lambda folder: Room(int(free_gib * GIB), None))

    assert embedded_start.pool_that_fits_gib() == pool_gib
    assert ("no room for the default pool" in capsys.readouterr().out) == (pool_gib < 5)
