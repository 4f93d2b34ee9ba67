"""A hit gives what vLLM's own prefix cache gives for as many cached tokens, to the last bit."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import pytest

from lmcache.testing.vllm_spec import mp_connector
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.conftest import running, spec_of
from tests.vllm_engine.driver import BLOCK, CHUNK, Driver, held, new_salt, prompt_of, same, worst_error

# Around the borders of blocks (128) and chunks (256).
LENGTHS = (255, 257, 383, 384, 385, 511, 513, 767, 769, 1000, 1025, 1409)


@pytest.mark.parametrize("length", LENGTHS)
def test_hit_equals_prefix_hit(engine: Driver, length: int) -> None:
    prompt, salt = prompt_of(length, seed=1), new_salt()
    # Stored as the oracle computes it: KV computed in steps of another size differs in rounding.
    assert engine.store(prompt[: held(length)] or prompt, salt).num_cached_tokens == 0
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == held(length)
    assert same(hit, engine.prefix_hit(prompt, held(length)))


@pytest.mark.parametrize("num_local_blocks", [1, 2, 3, 5])
def test_load_starts_after_the_blocks_that_vllm_has(engine: Driver, num_local_blocks: int) -> None:
    prompt, salt = prompt_of(900, seed=2), new_salt()
    engine.store(prompt[:768], salt)
    # A prompt as short as that brings its blocks into vLLM's own cache.
    engine.one(prompt[: num_local_blocks * BLOCK + 1], salt, max_tokens=1)
    engine.process.settle()
    hit = engine.one(prompt, salt)
    assert hit.num_cached_tokens == 768
    assert same(hit, engine.prefix_hit(prompt, 768))


def test_offer_that_vllm_does_not_take(engine: Driver) -> None:
    """Logprobs of the prompt must be computed: vLLM turns the offer down and nothing stays locked."""
    prompt, salt = prompt_of(700, seed=3), new_salt()
    cold = engine.store(prompt, salt, max_tokens=4)
    refused = engine.hit(prompt, salt, prompt_logprobs=1)
    assert refused.num_cached_tokens == 0
    assert same(refused, cold)
    assert engine.hit(prompt, salt).num_cached_tokens == 512


def test_salts_keep_tenants_apart(engine: Driver) -> None:
    salt = new_salt()
    prompt = prompt_of(600, seed=salt)
    engine.store(prompt, salt, max_tokens=2)
    assert engine.hit(prompt, new_salt()).num_cached_tokens == 0
    assert engine.hit(prompt).num_cached_tokens == 0
    assert engine.hit(prompt, salt).num_cached_tokens == 512


def test_salt_that_no_key_can_hold_is_served_without_cache(engine: Driver) -> None:
    prompt, salt = prompt_of(600, seed=5), "not@a@salt"
    engine.store(prompt, salt, max_tokens=2)
    assert engine.hit(prompt, salt).num_cached_tokens == 0
    assert any("without cache" in line for line in engine.process.call("log_lines"))


def family(seed: int) -> list[list[int]]:
    """Prompts that branch off each other at random places, on and off the borders."""
    tokens = random.Random(seed)
    prompts = [prompt_of(tokens.randrange(300, 1500), seed)]
    while len(prompts) < 9:
        stem = tokens.choice(prompts)
        cut = tokens.choice([tokens.randrange(1, len(stem)), CHUNK, 2 * CHUNK, 2 * CHUNK + 1, 3 * BLOCK])
        prompts.append(prompt_of(min(1600, cut + tokens.randrange(2, 700)), seed * 100 + len(prompts), stem[:cut]))
    return prompts


def check_family(engine: Driver, reference: Driver, prompts: list[list[int]], salt: str) -> None:
    """All that is loaded is what `reference` computes from nothing, up to rounding in other company."""
    seen = []
    for prompt in prompts:
        engine.process.settle()
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


@pytest.mark.parametrize("seed", [11, 12])
def test_family_of_prompts_stored_and_read_in_batches(engine: Driver, seed: int) -> None:
    """Whatever was saved or loaded beside others belongs to its key alone."""
    prompts, salt = family(seed), new_salt()
    for start in (0, 4, 2):
        batch = prompts[start : start + 5]
        engine.process.generate(batch, 3, salts=[salt] * len(batch))
        engine.process.settle()
        engine.process.forget()
    check_family(engine, engine, prompts, salt)


@pytest.fixture(scope="module")
def uncached_engine(server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """vLLM's prefix caching off: all that is known is known to us."""
    options = {"enable_prefix_caching": False}
    yield from running(spec_of(model_folder, mp_connector(server.port), options=options), server)


def test_without_prefix_caching(uncached_engine: Driver, main_engine: Driver) -> None:
    salt = new_salt()
    prompts = family(13)
    uncached_engine.process.generate(prompts, 2, salts=[salt] * len(prompts))
    uncached_engine.process.settle()
    check_family(uncached_engine, main_engine, prompts, salt)
    for length in (257, 1000, 1025):
        prompt = prompt_of(length, seed=14)
        uncached_engine.store(prompt[: held(length)], salt)
        hit = uncached_engine.one(prompt, salt)
        assert hit.num_cached_tokens == held(length)
        assert same(hit, main_engine.prefix_hit(prompt, held(length)))
    uncached_engine.check_nothing_held()


@pytest.fixture(scope="module", params=["async", "sync"])
def bare_engine(request: pytest.FixtureRequest, server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """The reference in the same process: a copy each way, and nothing that could go wrong."""
    connector = {
        "kv_connector": "BareConnector",
        "kv_connector_module_path": "benchmarks.bare_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"bare.load_mode": request.param},
    }
    yield from running(spec_of(model_folder, connector), server, joins=False)


def test_whole_prompt_is_held(
    bare_engine: Driver, request: pytest.FixtureRequest, main_engine: Driver, sync_engine: Driver
) -> None:
    """vLLM must compute the last token itself; its own prefix cache would compute a whole block."""
    is_sync = "sync]" in request.node.name and "async]" not in request.node.name
    engine = sync_engine if is_sync else main_engine
    for length in (CHUNK, 2 * CHUNK, 4 * CHUNK):
        prompt, salt = prompt_of(length, seed=6), new_salt()
        outputs = []
        for one in (bare_engine, engine):
            one.store(prompt, salt, max_tokens=2)
            outputs.append(one.hit(prompt, salt))
        assert outputs[0].num_cached_tokens == outputs[1].num_cached_tokens
        assert outputs[0].num_cached_tokens in (length, length - 1)
        assert same(*outputs)
    engine.check_nothing_held()
