"""A hit gives what vLLM's own prefix cache gives for as many cached tokens, to the last bit."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.vllm_shared.driver import VllmDriver
from tests.vllm_shared.prompts import BLOCK, CHUNK, family, held, new_salt, prompt_of, same, worst_error

# Around the borders of blocks (128) and chunks (256).
LENGTHS = (255, 257, 383, 384, 385, 511, 513, 767, 769, 1000, 1025, 1409)


def check_family(engine: VllmDriver, reference: VllmDriver, prompts: list[list[int]], salt: str) -> None:
    """All that is loaded is what `reference` computes from nothing, up to rounding in other company."""
    seen = []
    for prompt in prompts:
        engine.settle_and_forget()
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


class HitEquality:
    """Needs fixtures `engine`, `main_engine`, and `uncached_engine`: with vLLM's prefix caching off."""

    # Of `uncached_engine`: tokens in a chunk, and lengths of prompts that end in a part of one.
    uncached_chunk: ClassVar[int] = CHUNK
    uncached_lengths: ClassVar[tuple[int, ...]] = (257, 1000, 1025)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_hit_equals_prefix_hit(self, engine: VllmDriver, length: int) -> None:
        prompt, salt = prompt_of(length, seed=1), new_salt()
        # Stored as the oracle computes it: KV computed in steps of another size differs in rounding.
        assert engine.store(prompt[: held(length)] or prompt, salt).num_cached_tokens == 0
        hit = engine.hit(prompt, salt)
        assert hit.num_cached_tokens == held(length)
        assert same(hit, engine.prefix_hit(prompt, held(length)))

    @pytest.mark.parametrize("num_local_blocks", [1, 2, 3, 5])
    def test_load_starts_after_the_blocks_that_vllm_has(self, engine: VllmDriver, num_local_blocks: int) -> None:
        prompt, salt = prompt_of(900, seed=2), new_salt()
        engine.store(prompt[:768], salt)
        # A prompt as short as that brings its blocks into vLLM's own cache.
        engine.one(prompt[: num_local_blocks * BLOCK + 1], salt, max_tokens=1)
        engine.process.settle()
        hit = engine.one(prompt, salt)
        assert hit.num_cached_tokens == 768
        assert same(hit, engine.prefix_hit(prompt, 768))

    def test_offer_that_vllm_does_not_take(self, engine: VllmDriver) -> None:
        """Logprobs of the prompt must be computed: vLLM turns the offer down and nothing stays locked."""
        prompt, salt = prompt_of(700, seed=3), new_salt()
        cold = engine.store(prompt, salt, max_tokens=4)
        refused = engine.hit(prompt, salt, prompt_logprobs=1)
        assert refused.num_cached_tokens == 0
        assert same(refused, cold)
        assert engine.hit(prompt, salt).num_cached_tokens == 512

    def test_salts_keep_tenants_apart(self, engine: VllmDriver) -> None:
        salt = new_salt()
        prompt = prompt_of(600, seed=salt)
        engine.store(prompt, salt, max_tokens=2)
        assert engine.hit(prompt, new_salt()).num_cached_tokens == 0
        assert engine.hit(prompt).num_cached_tokens == 0
        assert engine.hit(prompt, salt).num_cached_tokens == 512

    def test_salt_that_no_key_can_hold_is_served_without_cache(self, engine: VllmDriver) -> None:
        prompt, salt = prompt_of(600, seed=5), "not@a@salt"
        engine.store(prompt, salt, max_tokens=2)
        assert engine.hit(prompt, salt).num_cached_tokens == 0
        assert any("without cache" in line for line in engine.log_lines())

    @pytest.mark.parametrize("seed", [11, 12])
    def test_family_of_prompts_stored_and_read_in_batches(self, engine: VllmDriver, seed: int) -> None:
        """Whatever was saved or loaded beside others belongs to its key alone."""
        prompts, salt = family(seed), new_salt()
        for start in (0, 4, 2):
            batch = prompts[start : start + 5]
            engine.process.generate(batch, 3, salts=[salt] * len(batch))
            engine.settle_and_forget()
        check_family(engine, engine, prompts, salt)

    def test_without_prefix_caching(self, uncached_engine: VllmDriver, main_engine: VllmDriver) -> None:
        """All that is known is known to us."""
        salt = new_salt()
        prompts = family(13)
        uncached_engine.process.generate(prompts, 2, salts=[salt] * len(prompts))
        uncached_engine.process.settle()
        check_family(uncached_engine, main_engine, prompts, salt)
        for length in self.uncached_lengths:
            prompt, num_held = prompt_of(length, seed=14), held(length, self.uncached_chunk)
            uncached_engine.store(prompt[:num_held], salt)
            hit = uncached_engine.one(prompt, salt)
            assert hit.num_cached_tokens == num_held
            assert same(hit, main_engine.prefix_hit(prompt, num_held))
        uncached_engine.check_nothing_held()
