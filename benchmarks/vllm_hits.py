"""What the benchmarks of hits in a real vLLM share: prompts, the bare connector, rounds of turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common import CHUNK_TOKENS
from lmcache.testing.vllm_engine import EngineProcess

ROUNDS = 8
WARM_UP = 1


def bare_connector(load_mode: str) -> dict[str, Any]:
    """The kv-transfer-config of the reference; `load_mode`: async or sync."""
    return {
        "kv_connector": "BareConnector",
        "kv_connector_module_path": "benchmarks.bare_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"bare.load_mode": load_mode},
    }


def prompt_of(model: Mapping[str, Any], num_tokens: int) -> list[int]:
    rng = random.Random(num_tokens)
    return [rng.randrange(model["vocab_size"]) for _ in range(num_tokens)]


def short_name(num_tokens: int) -> str:
    return f"{num_tokens // 1024}K" if num_tokens % 1024 == 0 else str(num_tokens)


def store(engine: EngineProcess, prompt: list[int]) -> None:
    engine.call("time_to_first_token", prompt)
    engine.settle()


def hit_ms(engine: EngineProcess, prompt: list[int], is_async: bool) -> float:
    """To the first token, once vLLM itself has forgotten the prompt.

    Of a prompt that is held whole, a synchronous load leaves the last token to the step that loads.
    """
    engine.forget()
    took_s, num_cached = engine.call("time_to_first_token", prompt)
    num_held = len(prompt) // CHUNK_TOKENS * CHUNK_TOKENS
    if num_cached != min(num_held, len(prompt) - (0 if is_async else 1)):
        raise RuntimeError(f"{num_cached} of {len(prompt)} tokens were cached")
    return float(took_s * 1000)


def remembered_ms(engine: EngineProcess, prompt: list[int]) -> float:
    """To the first token of a prompt that vLLM itself remembers, but for its last block."""
    took_s, _ = engine.call("time_to_first_token", prompt)
    return float(took_s * 1000)


def in_turns(
    rivals: Mapping[str, Callable[[], float]], after: Mapping[str, Callable[[], float]], rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """One value of each by round: of the rivals the mean of two, once forwards and once backwards, since who comes
    after another is slower (the processor's caches are the other's) than who comes after itself; the next round
    begins with the last of them. Then the others in their order."""
    found: dict[str, list[float]] = {name: [] for name in (*rivals, *after)}
    for number in range(warm_up + rounds):
        turns = list(rivals.items())[:: -1 if number % 2 else 1]
        forwards = {name: take() for name, take in turns}
        backwards = {name: take() for name, take in reversed(turns)}
        for name in rivals:
            found[name].append((forwards[name] + backwards[name]) / 2)
        for name, take in after.items():
            found[name].append(take())
    return {name: values[warm_up:] for name, values in found.items()}
