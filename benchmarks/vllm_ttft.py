"""Time to the first token of a hit in a real vLLM on CPU: our connector and server against the bare connector.

Both engines are alive at once, each in a process of its own; an idle one costs nothing.
"""

from __future__ import annotations

import contextlib
import pathlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import CHUNK_TOKENS, Row, children_kept_quiet, median, print_rows, server
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, mp_connector

# Prompt length in tokens -> milliseconds that a hit may take beyond the bare connector's.
TARGETS_MS = {4096: 10.0, 8192: 15.0}
PAIRS = 11
WARM_UP = 2
BARE: dict[str, Any] = {
    "kv_connector": "BareConnector",
    "kv_connector_module_path": "benchmarks.bare_connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
    "kv_connector_extra_config": {"bare.load_mode": "async"},
}


@dataclass
class Times:
    """Milliseconds to the first token, one of each kind per pair."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)


def main(
    targets_ms: dict[int, float] | None = None, model: dict[str, Any] | None = None, pairs: int = PAIRS,
    warm_up: int = WARM_UP,
) -> list[Row]:  # fmt: skip
    targets_ms, model = targets_ms or TARGETS_MS, model or SMALL_LLAMA
    rows: list[Row] = []
    with children_kept_quiet(), engines(model, max(targets_ms)) as (ours, bare):
        for num_tokens, target_ms in targets_ms.items():
            times = _measure(ours, bare, _prompt(model, num_tokens), pairs, warm_up)
            rows += _rows(num_tokens, times, target_ms)
    print_rows(f"vLLM on CPU, {model['num_hidden_layers']} layers: first token of a hit, {pairs} pairs", rows)
    return rows


@contextlib.contextmanager
def engines(model: dict[str, Any], max_tokens: int) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    """Ours with a real server, and the bare one; joined and warm."""
    options = {"max_model_len": max_tokens + 256}
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        running = stack.enter_context(server(1.0))

        def start(connector: dict[str, Any]) -> EngineProcess:
            engine = EngineProcess(EngineSpec(folder, model, connector, options=options))
            stack.callback(engine.close)
            return engine

        ours, bare = start(mp_connector(running.port)), start(BARE)
        if not ours.call("wait_until_joined"):
            raise RuntimeError("vLLM did not join the server")
        yield ours, bare


def _prompt(model: dict[str, Any], num_tokens: int) -> list[int]:
    rng = random.Random(num_tokens)
    return [rng.randrange(model["vocab_size"]) for _ in range(num_tokens)]


def _measure(ours: EngineProcess, bare: EngineProcess, prompt: list[int], pairs: int, warm_up: int) -> Times:
    for engine in (ours, bare):
        engine.call("time_to_first_token", prompt)
        engine.settle()
    times = Times()
    for number in range(warm_up + pairs):
        turns: list[tuple[list[float], Callable[[], float]]] = [
            (times.ours, lambda: _hit_ms(ours, prompt)),
            (times.bare, lambda: _hit_ms(bare, prompt)),
        ]
        for kind, take in turns if number % 2 else reversed(turns):
            kind.append(take())
        times.own.append(bare.call("time_to_first_token", prompt)[0] * 1000)
    return Times(times.ours[warm_up:], times.bare[warm_up:], times.own[warm_up:])


def _hit_ms(engine: EngineProcess, prompt: list[int]) -> float:
    """Once vLLM itself has forgotten the prompt."""
    engine.forget()
    took_s, num_cached = engine.call("time_to_first_token", prompt)
    if num_cached != len(prompt) // CHUNK_TOKENS * CHUNK_TOKENS:
        raise RuntimeError(f"{num_cached} of {len(prompt)} tokens were cached")
    return float(took_s * 1000)


def _rows(num_tokens: int, times: Times, target_ms: float) -> Sequence[Row]:
    beyond = median([ours - bare for ours, bare in zip(times.ours, times.bare, strict=True)])
    name = f"{num_tokens // 1024}K" if num_tokens % 1024 == 0 else str(num_tokens)
    return [
        Row(f"{name}: vLLM's own prefix hit, last block computed", f"{median(times.own):.1f} ms"),
        Row(f"{name}: bare connector", f"{median(times.bare):.1f} ms"),
        Row(f"{name}: ours", f"{median(times.ours):.1f} ms"),
        Row(f"{name}: ours beyond bare", f"{beyond:.1f} ms", f"<= {target_ms:g} ms", beyond <= target_ms),
    ]


if __name__ == "__main__":
    main()
