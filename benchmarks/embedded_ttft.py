"""Time to the first token of a hit in a real vLLM on CPU: the in-process mode against the bare connector.

Both load synchronously, in the process of vLLM itself and with the same copying. The engines are alive at
once, each in a process of its own. The load inside a hit is held against one memmove of the same bytes, too.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import Row, children_kept_quiet, median, print_rows, seconds
from benchmarks.vllm_hits import (
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
from lmcache.testing.vllm_spec import EngineSpec, embedded_connector

PROMPT_TOKENS = (4096, 8192)
RATIO_MAX = 1.15
# One process may be faster than another for as long as it lives, by where its memory lies: so there are several of
# each, and whose comes first takes turns.
ENGINE_PAIRS = 3
PAIR_ROUNDS = 4
POOL_GIB = 0.5


def main(
    prompt_tokens: Sequence[int] = PROMPT_TOKENS, model: dict[str, Any] | None = None, rounds: int = PAIR_ROUNDS,
    warm_up: int = WARM_UP, num_pairs: int = ENGINE_PAIRS,
) -> list[Row]:  # fmt: skip
    model = model or SMALL_LLAMA
    found: dict[int, dict[str, list[float]]] = {num_tokens: {} for num_tokens in prompt_tokens}
    for number in range(num_pairs):
        with children_kept_quiet(), engines(model, max(prompt_tokens), ours_first=number % 2 == 0) as (ours, bare):
            for num_tokens, all_times in found.items():
                num_bytes = num_tokens * _bytes_per_token(model)
                times = _measure(ours, bare, prompt_of(model, num_tokens), num_bytes, rounds, warm_up)
                for name, values in times.items():
                    all_times.setdefault(name, []).extend(values)
    rows: list[Row] = []
    for num_tokens, times in found.items():
        rows += _rows(short_name(num_tokens), num_tokens * _bytes_per_token(model), times)
    title = f"vLLM on CPU, {model['num_hidden_layers']} layers, in-process mode: first token of a hit"
    print_rows(f"{title}, {num_pairs} pairs of engines, {rounds} of hits each", rows)
    return rows


@contextlib.contextmanager
def engines(
    model: dict[str, Any], max_tokens: int, ours_first: bool = True
) -> Iterator[tuple[EngineProcess, EngineProcess]]:
    """Ours and the bare one, each with a watch on its loads."""
    options = {"max_model_len": max_tokens + 256}
    with tempfile.TemporaryDirectory(prefix="lmcache-bench-") as folder, contextlib.ExitStack() as stack:

        def start(connector: dict[str, Any]) -> EngineProcess:
            engine = EngineProcess(EngineSpec(pathlib.Path(folder), model, connector, options=options))
            stack.callback(engine.close)
            engine.run("from benchmarks.embedded_ttft import watch_loads; watch_loads(engine)")
            return engine

        # We make vLLM forget only to measure: what was stored is still right.
        connectors = [embedded_connector(keep_on_reset=True, max_local_cpu_size=POOL_GIB), bare_connector("sync")]
        started = [start(connector) for connector in (connectors if ours_first else reversed(connectors))]
        ours, bare = started if ours_first else reversed(started)
        yield ours, bare


def _bytes_per_token(model: Mapping[str, Any]) -> int:
    """Keys and values of two bytes an element."""
    return int(2 * 2 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"])


def _measure(
    ours: EngineProcess, bare: EngineProcess, prompt: list[int], num_bytes: int, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Milliseconds: to the first token, of the loads inside, and of one memmove."""
    for engine in (ours, bare):
        store(engine, prompt)
    # Twice as large and used by halves: as cold as what is loaded.
    source, target = np.ones((2, num_bytes), np.uint8), np.ones((2, num_bytes), np.uint8)
    half = 0

    def move_ms() -> float:
        nonlocal half
        half = 1 - half
        return seconds(lambda: np.copyto(target[half], source[half])) * 1000

    rivals: dict[str, Callable[[], float]] = {
        "ours": lambda: hit_ms(ours, prompt, False),
        "bare": lambda: hit_ms(bare, prompt, False),
    }
    after: dict[str, Callable[[], float]] = {
        "our load": lambda: _load_ms(ours),
        "bare load": lambda: _load_ms(bare),
        "memmove": move_ms,
    }
    found = in_turns(rivals, after, rounds, warm_up)
    # Not between the rounds: whoever ran last finds its weights in the processor's caches.
    return found | in_turns({"own": lambda: remembered_ms(bare, prompt)}, {}, rounds, warm_up)


def _load_ms(engine: EngineProcess) -> float:
    """Of the last hit: the hook of the step that carried its load."""
    return float(engine.run("result, engine.load_s = engine.load_s, 0.0") * 1000)


def _rows(name: str, num_bytes: int, times: Mapping[str, list[float]]) -> Sequence[Row]:
    def ratio(of: str, to: str) -> float:
        return median([one / other for one, other in zip(times[of], times[to], strict=True)])

    to_bare = ratio("ours", "bare")
    return [
        Row(f"{name}: vLLM's own prefix hit, last block loaded", f"{median(times['own']):.1f} ms"),
        Row(f"{name}: bare synchronous connector", f"{median(times['bare']):.1f} ms"),
        Row(f"{name}: ours", f"{median(times['ours']):.1f} ms"),
        Row(f"{name}: ours to bare", f"{to_bare:.3f}", f"<= {RATIO_MAX}", to_bare <= RATIO_MAX),
        Row(f"{name}: memmove of {num_bytes / (1 << 20):.0f} MiB", f"{median(times['memmove']):.1f} ms"),
        Row(f"{name}: bare load", f"{ratio('memmove', 'bare load'):.2f} of memmove"),
        Row(f"{name}: our load", f"{ratio('memmove', 'our load'):.2f} of memmove"),
        Row(f"{name}: ours, all of the hit", f"{ratio('ours', 'memmove'):.1f} memmoves"),
    ]


# Inside the engine's process


def watch_loads(engine: Any) -> None:
    """Keep the longest time that the hook which loads has taken since somebody asked."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = get_kv_transfer_group()
    load, engine.load_s = connector.start_load_kv, 0.0

    def timed(*arguments: Any, **options: Any) -> None:
        begun_s = time.perf_counter()
        load(*arguments, **options)
        engine.load_s = max(engine.load_s, time.perf_counter() - begun_s)

    connector.start_load_kv = timed


if __name__ == "__main__":
    main()
