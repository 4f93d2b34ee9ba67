"""Time to the first token of a hit in a real vLLM on CPU: our connector and server against the bare connector.

Both engines are alive at once, each in a process of its own; an idle one costs nothing.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import Row, children_kept_quiet, median, print_rows, server
from benchmarks.vllm_hits import (
    ROUNDS,
    WARM_UP,
    bare_connector,
    hit_ms,
    in_turns,
    prompt_of,
    remembered_ms,
    short_name,
    store,
)
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import SMALL_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, mp_connector

# Prompt length in tokens -> milliseconds that a hit may take beyond the bare connector's.
TARGETS_MS = {4096: 10.0, 8192: 15.0}


def main(
    targets_ms: dict[int, float] | None = None, model: dict[str, Any] | None = None, rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
) -> list[Row]:  # fmt: skip
    targets_ms, model = targets_ms or TARGETS_MS, model or SMALL_LLAMA
    rows: list[Row] = []
    with children_kept_quiet(), engines(model, max(targets_ms)) as (ours, bare):
        for num_tokens, target_ms in targets_ms.items():
            times = _measure(ours, bare, prompt_of(model, num_tokens), rounds, warm_up)
            rows += _rows(short_name(num_tokens), times, target_ms)
    print_rows(f"vLLM on CPU, {model['num_hidden_layers']} layers: first token of a hit, {rounds} pairs", rows)
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

        ours, bare = start(mp_connector(running.port)), start(bare_connector("async"))
        if not ours.call("wait_until_joined"):
            raise RuntimeError("vLLM did not join the server")
        yield ours, bare


def _measure(
    ours: EngineProcess, bare: EngineProcess, prompt: list[int], rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Milliseconds to the first token."""
    for engine in (ours, bare):
        store(engine, prompt)
    rivals = {"ours": lambda: hit_ms(ours, prompt, True), "bare": lambda: hit_ms(bare, prompt, True)}
    found = in_turns(rivals, {}, rounds, warm_up)
    # Not between the rounds: whoever ran last finds its weights in the processor's caches.
    return found | in_turns({"own": lambda: remembered_ms(bare, prompt)}, {}, rounds, warm_up)


def _rows(name: str, times: Mapping[str, list[float]], target_ms: float) -> Sequence[Row]:
    beyond = median([ours - bare for ours, bare in zip(times["ours"], times["bare"], strict=True)])
    return [
        Row(f"{name}: vLLM's own prefix hit, last block loaded", f"{median(times['own']):.1f} ms"),
        Row(f"{name}: bare connector", f"{median(times['bare']):.1f} ms"),
        Row(f"{name}: ours", f"{median(times['ours']):.1f} ms"),
        Row(f"{name}: ours beyond bare", f"{beyond:.1f} ms", f"<= {target_ms:g} ms", beyond <= target_ms),
    ]


if __name__ == "__main__":
    main()
