"""Time inside the hooks of a connector, by step of a real vLLM: requests that miss, shares, percentiles.

Every hook of both halves is wrapped inside the engine's process; a step is vLLM's own.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from benchmarks.common import Row
from lmcache.testing.vllm_engine import EngineProcess

SHARE_MAX = 0.01
_CALIBRATION_CALLS = 2000


@dataclass
class HookTimes:
    """Seconds. `wall`: each call by hook; `cpu_s`: of the calling thread, summed; `steps`: each step.

    `empty_cpu_s`: CPU time that one call of a hook that does nothing seems to take.
    """

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: float = 0.0
    steps: list[float] = field(default_factory=list)
    empty_cpu_s: float = 0.0

    def clear(self) -> None:
        self.wall.clear()
        self.steps.clear()
        self.cpu_s = 0.0

    @property
    def wall_share(self) -> float:
        return sum(sum(calls) for calls in self.wall.values()) / sum(self.steps)

    @property
    def cpu_share(self) -> float:
        num_calls = sum(len(calls) for calls in self.wall.values())
        return max(0.0, self.cpu_s - num_calls * self.empty_cpu_s) / sum(self.steps)

    def worst(self) -> tuple[str, float]:
        """The hook with the highest 99th percentile, and that."""
        return max(((name, _p99(calls)) for name, calls in self.wall.items()), key=lambda found: found[1])


def _p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def random_prompts(model: Mapping[str, Any], num_tokens: int, count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(f"{seed} {num_tokens}")
    return [[rng.randrange(model["vocab_size"]) for _ in range(num_tokens)] for _ in range(count)]


def start_timing(engine: EngineProcess, first_prompt: list[int]) -> None:
    """From here on hooks are timed. The first request, slower than all after it, is over then."""
    engine.generate([first_prompt], 2)
    engine.settle()
    engine.run("from benchmarks.hook_times import install; install(engine)")


def times_of(engine: EngineProcess, prompts: Sequence[list[int]], max_tokens: int) -> HookTimes:
    """Of these requests, one after the other, and of the saves they leave behind."""
    engine.run("engine.hook_times.clear()")
    for prompt in prompts:
        (output,) = engine.generate([prompt], max_tokens)
        if output.num_cached_tokens:
            raise RuntimeError("a prompt that should miss was a hit")
        engine.settle()
    found: HookTimes = engine.run("result = engine.hook_times")
    return found


def share_rows(phase: str, times: HookTimes, is_judged: bool = True) -> list[Row]:
    rows = [Row(f"{phase}: {len(times.steps)} steps", f"{sum(times.steps) / len(times.steps) * 1000:.1f} ms each")]
    for kind, share in (("wall", times.wall_share), ("CPU", times.cpu_share)):
        name, value = f"{phase}: {kind} time in hooks", f"{share:.2%}"
        judged = Row(name, value, f"<= {SHARE_MAX:.0%} of step time", share <= SHARE_MAX)
        rows.append(judged if is_judged else Row(name, value))
    return rows


def p99_row(phase: str, times: HookTimes, max_ms: float | None = None) -> Row:
    hook, p99_s = times.worst()
    name, value = f"{phase}: highest p99, {hook}", f"{p99_s * 1000:.2f} ms"
    if max_ms is None:
        return Row(name, value)
    return Row(name, value, f"<= {max_ms:g} ms", p99_s * 1000 <= max_ms)


# Inside the engine's process


def install(engine: Any) -> None:
    """Wrap every hook that the connector's class defines, on both halves, and the engine's step."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    times = engine.hook_times = HookTimes()
    empty = _timed(times, "empty", lambda: None)
    for _ in range(_CALIBRATION_CALLS):
        empty()
    times.empty_cpu_s = times.cpu_s / _CALIBRATION_CALLS
    for side, connector in (("scheduler", engine._scheduler.connector), ("worker", get_kv_transfer_group())):
        for name, value in vars(type(connector)).items():
            if isinstance(value, FunctionType) and not name.startswith("_"):
                setattr(connector, name, _timed(times, f"{name} ({side})", getattr(connector, name)))
    core = engine._core
    core.step_fn = _timed_step(times, core.step_fn)


def _timed(times: HookTimes, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begun_cpu_s = time.thread_time()
        begun_s = time.perf_counter()
        try:
            return hook(*arguments, **options)
        finally:
            took_s = time.perf_counter() - begun_s
            times.cpu_s += time.thread_time() - begun_cpu_s
            times.wall.setdefault(name, []).append(took_s)

    return timed


def _timed_step(times: HookTimes, step: Callable[[], Any]) -> Callable[[], Any]:
    def timed() -> Any:
        begun_s = time.perf_counter()
        try:
            return step()
        finally:
            times.steps.append(time.perf_counter() - begun_s)

    return timed
