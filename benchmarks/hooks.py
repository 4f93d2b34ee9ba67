"""What our connector takes from an engine that finds nothing in the cache: time inside its hooks, by step.

Every hook of both halves is wrapped inside the engine's process; a step is vLLM's own.
"""

from __future__ import annotations

import math
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from benchmarks.common import Row, children_kept_quiet, print_rows, server
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, mp_connector

PROMPT_TOKENS = 4096
PROMPTS = 12
SHORT_TOKENS, SHORT_PROMPTS = 512, 200
DECODED_TOKENS = 400
SHARE_MAX = 0.01
P99_MS_MAX = 1.0
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


def main(
    model: dict[str, Any] | None = None, prompt_tokens: int = PROMPT_TOKENS, prompts: int = PROMPTS,
    decoded_tokens: int = DECODED_TOKENS, short_prompts: int = SHORT_PROMPTS,
) -> list[Row]:  # fmt: skip
    model = model or SMALL_LLAMA
    with (
        tempfile.TemporaryDirectory(prefix="lmcache-bench-") as folder,
        children_kept_quiet(),
        server(1.0) as running,
    ):
        options = {"max_model_len": prompt_tokens + 256}
        engine = EngineProcess(EngineSpec(pathlib.Path(folder), model, mp_connector(running.port), options=options))
        try:
            if not engine.call("wait_until_joined"):
                raise RuntimeError("vLLM did not join the server")
            rng = random.Random(0)
            first, *drawn = (
                [rng.randrange(model["vocab_size"]) for _ in range(prompt_tokens)] for _ in range(prompts + 2)
            )
            engine.generate([first], 2)  # slower than all after it
            engine.settle()
            engine.run("from benchmarks.hooks import install; install(engine)")
            rows = _share_rows(f"prefill of {prompt_tokens} tokens", _times(engine, drawn[1:], 1))
            times = _times(engine, [drawn[0][:200]], decoded_tokens)
            rows += [*_share_rows("decode", times), _p99_row("decode", times)]
            # A hook that is called once a prompt: only many prompts have a 99th percentile.
            short = [[rng.randrange(model["vocab_size"]) for _ in range(SHORT_TOKENS)] for _ in range(short_prompts)]
            rows.append(_p99_row(f"{short_prompts} prompts of {SHORT_TOKENS} tokens", _times(engine, short, 1)))
        finally:
            engine.close()
    print_rows(f"our hooks, {prompts} prompts that miss", rows)
    return rows


def _times(engine: EngineProcess, prompts: list[list[int]], max_tokens: int) -> HookTimes:
    """Of these requests, one after the other, and of the saves they leave behind."""
    engine.run("engine.hook_times.clear()")
    for prompt in prompts:
        (output,) = engine.generate([prompt], max_tokens)
        if output.num_cached_tokens:
            raise RuntimeError("a prompt that should miss was a hit")
        engine.settle()
    found: HookTimes = engine.run("result = engine.hook_times")
    return found


def _share_rows(phase: str, times: HookTimes) -> list[Row]:
    wall, cpu, limit = times.wall_share, times.cpu_share, f"<= {SHARE_MAX:.0%} of step time"
    return [
        Row(f"{phase}: {len(times.steps)} steps", f"{sum(times.steps) / len(times.steps) * 1000:.1f} ms each"),
        Row(f"{phase}: wall time in hooks", f"{wall:.2%}", limit, wall <= SHARE_MAX),
        Row(f"{phase}: CPU time in hooks", f"{cpu:.2%}", limit, cpu <= SHARE_MAX),
    ]


def _p99_row(phase: str, times: HookTimes) -> Row:
    name, p99_s = times.worst()
    value, limit = f"{p99_s * 1000:.2f} ms", f"<= {P99_MS_MAX:g} ms"
    return Row(f"{phase}: highest p99, {name}", value, limit, p99_s * 1000 <= P99_MS_MAX)


def _p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


# Inside the engine's process


def install(engine: Any) -> None:
    """Wrap every hook our class defines, on both halves, and the engine's step."""
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


if __name__ == "__main__":
    main()
