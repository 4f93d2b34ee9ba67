"""An engine and its server as the tests use them: prompts, hits, the oracle, and what must be left behind."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import Output
from tests.vllm_engine.cache_server import CacheServer

BLOCK, CHUNK, VOCABULARY = 128, 256, 2000
_salt_numbers = itertools.count()


def prompt_of(length: int, seed: object, shared: list[int] | None = None) -> list[int]:
    """`length` random tokens, beginning with `shared`."""
    tokens = random.Random(f"{length} {seed}")
    begin = list(shared or ())
    return begin + [tokens.randrange(VOCABULARY) for _ in range(length - len(begin))]


def new_salt(name: str = "salt") -> str:
    """A tenant that nobody stored anything for."""
    return f"{name}-{next(_salt_numbers)}"


class Driver:
    def __init__(self, process: EngineProcess, server: CacheServer) -> None:
        self.process = process
        self.server = server

    def one(self, prompt: list[int], salt: str = "", max_tokens: int = 4, **sampling: Any) -> Output:
        (output,) = self.process.generate(
            [prompt], max_tokens, salts=[salt] if salt else None, sampling=sampling or None
        )
        return output

    def store(self, prompt: list[int], salt: str = "", max_tokens: int = 1) -> Output:
        """Compute and save a prompt, and make vLLM forget it."""
        output = self.one(prompt, salt, max_tokens=max_tokens)
        self.process.settle()
        self.process.forget()
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

    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, np.ndarray]:
        """Cached tokens, and the KV `[layers, blocks, values]` vLLM works with for a prompt's whole blocks."""
        num_cached, pages = self.process.call("pages", prompt, salt)
        return num_cached, pages

    def run(self, source: str, **values: Any) -> Any:
        return self.process.run(source, **values)

    def wait_until_joined(self, timeout_s: float = 20.0) -> None:
        """Both halves are registered with the server as it runs now, not with one before it."""
        boot_id = self.server.run("result = engine.boot_id")
        source = (
            "from vllm.distributed.kv_transfer import get_kv_transfer_group\n"
            "halves = scheduler.connector._scheduler, get_kv_transfer_group()._worker\n"
            "joined = [half.membership.current for half in halves]\n"
            "result = [one.boot_id for one in joined if one is not None and not one.registered.missing_ranks]"
        )
        deadline = time.monotonic() + timeout_s
        while self.run(source) != [boot_id, boot_id] or not self.state["is_joined"]:
            assert time.monotonic() < deadline, "the engine did not join"
            time.sleep(0.02)

    @property
    def state(self) -> dict[str, Any]:
        return self.process.call("connector_state")

    def check_nothing_held(self) -> None:
        """All blocks are free, no request is remembered, here and at the server."""
        self.process.settle()
        state = self.state
        assert (state["num_free_blocks"], state["num_trackers"], state["num_open_saves"]) == (
            state["num_blocks"] - 1, 0, 0,
        ), state  # fmt: skip
        self.server.wait_until_idle()


def held(length: int) -> int:
    """Tokens of whole chunks in a prompt of so many."""
    return length // CHUNK * CHUNK


def worst_error(pages: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of any block in any layer. Rounding gives some 1%, another block's KV some 140%."""
    difference = np.linalg.norm(pages - expected, axis=2)
    return float((difference / np.linalg.norm(expected, axis=2)).max())


def same(one: Output, other: Output) -> bool:
    """Tokens and logprobs to the last bit."""
    return (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
