"""A real vLLM with a connector of ours, as the tests use it: hits, the oracle, and what must be left behind."""

from __future__ import annotations

import pathlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import EngineSpec, Output
from tests.vllm_shared.prompts import new_salt, worst_error

_COUNT_PREEMPTIONS = """
engine.num_preempted = 0
preempt = scheduler._preempt_request
def counted(*arguments, **options):
    engine.num_preempted += 1
    return preempt(*arguments, **options)
scheduler._preempt_request = counted
"""


def spec_of(folder: pathlib.Path, connector: dict[str, Any] | None, **more: Any) -> EngineSpec:
    """One thread is enough for a model of this size, and a crowded machine likes it better."""
    options = {"max_model_len": 4096, **more.pop("options", {})}
    environment = {"OMP_NUM_THREADS": "1", **more.pop("environment", {})}
    return EngineSpec(folder, connector=connector, options=options, environment=environment, **more)


class VllmDriver(ABC):
    def __init__(self, process: EngineProcess) -> None:
        self.process = process

    @abstractmethod
    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, np.ndarray]:
        """Cached tokens, and the KV `[layers, blocks, values]` vLLM works with for a prompt's whole blocks."""

    @abstractmethod
    def check_nothing_held(self) -> None:
        """All blocks are free, no request is remembered, here and where KV is kept."""

    def run(self, source: str, **values: Any) -> Any:
        return self.process.run(source, **values)

    def one(self, prompt: list[int], salt: str = "", max_tokens: int = 4, **sampling: Any) -> Output:
        (output,) = self.process.generate(
            [prompt], max_tokens, salts=[salt] if salt else None, sampling=sampling or None
        )
        return output

    def settle_and_forget(self) -> None:
        """What was computed is saved, and vLLM does not know it any more."""
        self.process.settle()
        self.process.forget()

    def store(self, prompt: list[int], salt: str = "", max_tokens: int = 1) -> Output:
        """Compute and save a prompt, and make vLLM forget it."""
        output = self.one(prompt, salt, max_tokens=max_tokens)
        self.settle_and_forget()
        return output

    def hit(self, prompt: list[int], salt: str = "", **options: Any) -> Output:
        """Ask for a prompt that only we can know."""
        self.process.forget()
        return self.one(prompt, salt, **options)

    def prefix_hit(self, prompt: list[int], num_tokens: int, **options: Any) -> Output:
        """The oracle: the same prompt with `num_tokens` tokens from vLLM's own prefix cache, and none from us."""
        salt = new_salt("oracle")
        if num_tokens:
            self.one(prompt[:num_tokens], salt, max_tokens=1)
        output = self.one(prompt, salt, **options)
        assert output.num_cached_tokens == num_tokens
        return output

    def check_pages(self, prompt: list[int], salt: str) -> int:
        """What is loaded for this prompt is what vLLM computes; how many tokens were loaded."""
        self.settle_and_forget()
        num_cached, pages = self.pages(prompt, salt)
        none, expected = self.pages(prompt, new_salt())
        assert none == 0
        assert worst_error(pages, expected) < 0.1
        return num_cached

    def count_preemptions(self) -> None:
        """From here on, for `num_preempted`."""
        self.run(_COUNT_PREEMPTIONS)

    @property
    def num_preempted(self) -> int:
        found: int = self.run("result = engine.num_preempted")
        return found

    def log_lines(self, level: str = "WARNING") -> list[str]:
        found: list[str] = self.process.call("log_lines", level)
        return found
