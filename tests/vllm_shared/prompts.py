"""Prompts and tenants nobody has met before, and how what came of them is compared."""

from __future__ import annotations

import itertools
import random

import numpy as np

from lmcache.testing.vllm_spec import Output

BLOCK, CHUNK, VOCABULARY = 128, 256, 2000
_salt_numbers = itertools.count()


def prompt_of(length: int, seed: object, shared: list[int] | None = None) -> list[int]:
    """`length` random tokens, beginning with `shared`."""
    tokens = random.Random(f"{length} {seed}")
    begin = list(shared or ())
    return begin + [tokens.randrange(VOCABULARY) for _ in range(length - len(begin))]


def family(seed: int) -> list[list[int]]:
    """Prompts that branch off each other at random places, on and off the borders."""
    tokens = random.Random(seed)
    prompts = [prompt_of(tokens.randrange(300, 1500), seed)]
    while len(prompts) < 9:
        stem = tokens.choice(prompts)
        cut = tokens.choice([tokens.randrange(1, len(stem)), CHUNK, 2 * CHUNK, 2 * CHUNK + 1, 3 * BLOCK])
        prompts.append(prompt_of(min(1600, cut + tokens.randrange(2, 700)), seed * 100 + len(prompts), stem[:cut]))
    return prompts


def new_salt(name: str = "salt") -> str:
    """A tenant that nobody stored anything for."""
    return f"{name}-{next(_salt_numbers)}"


def held(length: int, chunk: int = CHUNK) -> int:
    """Tokens of whole chunks in a prompt of so many."""
    return length // chunk * chunk


def worst_error(pages: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of any block in any layer. Rounding gives some 1%, another block's KV some 140%."""
    difference = np.linalg.norm(pages - expected, axis=2)
    return float((difference / np.linalg.norm(expected, axis=2)).max())


def same(one: Output, other: Output) -> bool:
    """Tokens and logprobs to the last bit."""
    return (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
