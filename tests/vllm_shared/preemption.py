"""More requests than blocks: preempted, resumed, saved and loaded under pressure, and still right."""

from __future__ import annotations

from typing import ClassVar

from tests.vllm_shared.driver import VllmDriver
from tests.vllm_shared.prompts import held, new_salt, prompt_of


class Preemption:
    """Needs a fixture `small_engine`: room for 24 blocks, and decode-phase saves."""

    # A save that is over with its step never gives way to requests that want its blocks.
    saves_all_prompts: ClassVar[bool] = False

    def test_outputs_and_saves_survive_preemption(self, small_engine: VllmDriver) -> None:
        small_engine.count_preemptions()
        prompts, salt = [prompt_of(480 + 40 * index, seed=80 + index) for index in range(8)], new_salt()
        for attempt in range(2):
            outputs = small_engine.process.generate(prompts, 150, salts=[salt] * len(prompts))
            assert [len(output.token_ids) for output in outputs] == [150] * len(prompts), attempt
        assert small_engine.num_preempted > 0
        small_engine.check_nothing_held()
        num_loaded = 0
        for prompt, output in zip(prompts, outputs, strict=True):
            # Prompt and answer, saved while it was decoded, begun, preempted and resumed.
            num_loaded += small_engine.check_pages(prompt + output.token_ids, salt)
        if self.saves_all_prompts:
            assert num_loaded >= sum(held(len(prompt) - 1) for prompt in prompts)
        small_engine.check_nothing_held()

    def test_hits_under_pressure(self, small_engine: VllmDriver) -> None:
        """Loads wait for blocks, and what they promised stays locked until it is of no more use."""
        stem = prompt_of(768, seed=90)
        prompts, salt = [prompt_of(900 + 60 * index, seed=91 + index, shared=stem) for index in range(8)], new_salt()
        small_engine.store(stem, salt)
        outputs = small_engine.process.generate(prompts, 60, salts=[salt] * len(prompts))
        assert [len(output.token_ids) for output in outputs] == [60] * len(prompts)
        assert all(output.num_cached_tokens >= 768 for output in outputs)
        small_engine.check_nothing_held()
        for prompt in prompts[:4]:
            assert small_engine.check_pages(prompt, salt) >= held(len(prompt) - 1)

    def test_answers_are_found_by_the_next_turn(self, small_engine: VllmDriver) -> None:
        """Decode-phase saves: hits go beyond the prompt, never beyond what was computed."""
        prompt, salt = prompt_of(300, seed=101), new_salt()
        first = small_engine.store(prompt, salt, max_tokens=470)
        turn = prompt + first.token_ids
        # The last token was sampled, not computed: its chunk of 770 tokens is not whole, the third one is.
        hit = small_engine.hit([*turn, 5, 6, 7], salt)
        assert hit.num_cached_tokens == 768
        assert small_engine.check_pages(turn, salt) == 768

    def test_last_sampled_token_has_no_kv(self, small_engine: VllmDriver) -> None:
        """300 + 212 tokens are two chunks, but the KV of the last token was never computed."""
        prompt, salt = prompt_of(300, seed=102), new_salt()
        first = small_engine.store(prompt, salt, max_tokens=212)
        assert small_engine.hit([*prompt, *first.token_ids, 5], salt).num_cached_tokens == 256
