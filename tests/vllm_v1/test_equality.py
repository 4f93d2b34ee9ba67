"""A hit gives what vLLM's own prefix cache gives for as many cached tokens, to the last bit."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import pytest

from tests.vllm_engine.driver import BLOCK, CHUNK, held, new_salt, prompt_of, same, worst_error
from tests.vllm_v1.conftest import running, spec_of, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver

# Around the borders of blocks (128) and chunks (256).
LENGTHS = (255, 257, 383, 385, 511, 513, 769, 1025, 1409)


@pytest.mark.parametrize("length", LENGTHS)
def test_hit_equals_prefix_hit(engine: EmbeddedDriver, length: int) -> None:
    prompt, salt = prompt_of(length, seed=1), new_salt()
    # Stored as the oracle computes it: KV computed in steps of another size differs in rounding.
    assert engine.store(prompt[: held(length)] or prompt, salt).num_cached_tokens == 0
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == held(length)
    assert same(hit, engine.prefix_hit(prompt, held(length)))


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_a_prompt_that_is_held_whole_leaves_one_token_to_compute(engine: EmbeddedDriver, num_chunks: int) -> None:
    prompt, salt = prompt_of(num_chunks * CHUNK, seed=2), new_salt()
    cold = engine.store(prompt, salt, max_tokens=4)
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == num_chunks * CHUNK - 1
    hit = engine.hit(prompt, salt)
    assert (hit.num_cached_tokens, hit.token_ids) == (num_chunks * CHUNK - 1, cold.token_ids)
    # The last token is computed anew, in other company: a rounding away from what was stored.
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1


@pytest.mark.parametrize("num_local_blocks", [1, 2, 3, 5])
def test_load_starts_after_the_blocks_that_vllm_has(engine: EmbeddedDriver, num_local_blocks: int) -> None:
    prompt, salt = prompt_of(900, seed=3), new_salt()
    engine.store(prompt[:768], salt)
    # A prompt as short as that brings its blocks into vLLM's own cache.
    engine.one(prompt[: num_local_blocks * BLOCK + 1], salt, max_tokens=1)
    hit = engine.one(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))


def test_offer_that_vllm_does_not_take(engine: EmbeddedDriver) -> None:
    """Logprobs of the prompt must be computed: vLLM turns the offer down and nothing stays locked."""
    prompt, salt = prompt_of(700, seed=4), new_salt()
    cold = engine.store(prompt, salt, max_tokens=4)
    refused = engine.hit(prompt, salt, prompt_logprobs=1)
    assert refused.num_cached_tokens == 0
    assert same(refused, cold)
    assert engine.hit(prompt, salt).num_cached_tokens == 512


def test_salts_keep_tenants_apart(engine: EmbeddedDriver) -> None:
    salt = new_salt()
    prompt = prompt_of(600, seed=salt)
    engine.store(prompt, salt, max_tokens=2)
    assert engine.hit(prompt, new_salt()).num_cached_tokens == 0
    assert engine.hit(prompt).num_cached_tokens == 0
    assert engine.hit(prompt, salt).num_cached_tokens == 512


def test_salt_that_no_key_can_hold_is_served_without_cache(engine: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(600, seed=5), "not@a@salt"
    engine.store(prompt, salt, max_tokens=2)
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    assert any("without cache" in line for line in engine.log_lines())


def family(seed: int) -> list[list[int]]:
    """Prompts that branch off each other at random places, on and off the borders."""
    tokens = random.Random(seed)
    prompts = [prompt_of(tokens.randrange(300, 1500), seed)]
    while len(prompts) < 8:
        stem = tokens.choice(prompts)
        cut = tokens.choice([tokens.randrange(1, len(stem)), CHUNK, 2 * CHUNK, 2 * CHUNK + 1, 3 * BLOCK])
        prompts.append(prompt_of(min(1600, cut + tokens.randrange(2, 700)), seed * 100 + len(prompts), stem[:cut]))
    return prompts


def check_family(engine: EmbeddedDriver, reference: EmbeddedDriver, prompts: list[list[int]], salt: str) -> None:
    """All that is loaded is what `reference` computes from nothing, up to rounding in other company."""
    seen = []
    for prompt in prompts:
        engine.process.forget()
        num_cached, pages = engine.pages(prompt, salt)
        assert num_cached >= held(len(prompt) - 1)
        num_cached, expected = reference.pages(prompt, new_salt())
        assert num_cached == 0
        assert worst_error(pages, expected) < 0.1
        seen.append(expected)
    # The comparison can fail: the first block in the place of the second.
    wrong = seen[0].copy()
    wrong[:, 1] = wrong[:, 0]
    assert worst_error(wrong, seen[0]) > 0.5


def test_family_of_prompts_stored_and_read_in_batches(engine: EmbeddedDriver) -> None:
    """Whatever was saved or loaded beside others belongs to its key alone."""
    prompts, salt = family(11), new_salt()
    for start in (0, 4, 2):
        batch = prompts[start : start + 5]
        engine.process.generate(batch, 3, salts=[salt] * len(batch))
        engine.process.forget()
    check_family(engine, engine, prompts, salt)


@pytest.fixture(scope="module")
def uncached_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    """vLLM's prefix caching off: all that is known is known to us. Small chunks, another hash, prompts in steps."""
    options = {"enable_prefix_caching": False, "max_num_batched_tokens": 512}
    connector = v1_connector(chunk_size=128, pre_caching_hash_algorithm="sha256_cbor")
    yield from running(spec_of(model_folder, connector, options=options))


def test_without_prefix_caching(uncached_engine: EmbeddedDriver, main_engine: EmbeddedDriver) -> None:
    salt = new_salt()
    prompts = family(13)
    uncached_engine.process.generate(prompts, 2, salts=[salt] * len(prompts))
    check_family(uncached_engine, main_engine, prompts, salt)
    for length in (129, 500, 513):
        prompt = prompt_of(length, seed=14)
        num_held = (length - 1) // 128 * 128
        uncached_engine.store(prompt[:num_held], salt)
        hit = uncached_engine.one(prompt, salt)
        assert hit.num_cached_tokens == num_held
        assert same(hit, main_engine.prefix_hit(prompt, num_held))
    uncached_engine.check_nothing_held()
