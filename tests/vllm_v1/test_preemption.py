"""More requests than blocks, and requests that are aborted: saved and loaded under pressure, and still right."""

from __future__ import annotations

from tests.vllm_engine.driver import held, new_salt, prompt_of, worst_error
from tests.vllm_engine.test_preemption import COUNT_PREEMPTIONS
from tests.vllm_v1.driver import EmbeddedDriver


def check_pages(engine: EmbeddedDriver, prompt: list[int], salt: str) -> int:
    """What is loaded for this prompt is what vLLM computes; how many tokens were loaded."""
    engine.process.forget()
    num_cached, pages = engine.pages(prompt, salt)
    none, expected = engine.pages(prompt, new_salt())
    assert none == 0
    assert worst_error(pages, expected) < 0.1
    return num_cached


def test_outputs_and_saves_survive_preemption(small_engine: EmbeddedDriver) -> None:
    small_engine.run(COUNT_PREEMPTIONS)
    prompts, salt = [prompt_of(480 + 40 * index, seed=80 + index) for index in range(8)], new_salt()
    for attempt in range(2):
        outputs = small_engine.process.generate(prompts, 150, salts=[salt] * len(prompts))
        assert [len(output.token_ids) for output in outputs] == [150] * len(prompts), attempt
    assert small_engine.run("result = engine.num_preempted") > 0
    small_engine.check_nothing_held()
    num_loaded = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        # Prompt and answer, saved while it was decoded, begun, preempted and resumed.
        num_loaded += check_pages(small_engine, prompt + output.token_ids, salt)
    assert num_loaded >= sum(held(len(prompt) - 1) for prompt in prompts)
    small_engine.check_nothing_held()


def test_hits_under_pressure(small_engine: EmbeddedDriver) -> None:
    """Loads wait for blocks, and what they promised stays locked until it is of no more use."""
    stem = prompt_of(768, seed=90)
    prompts, salt = [prompt_of(900 + 60 * index, seed=91 + index, shared=stem) for index in range(8)], new_salt()
    small_engine.store(stem, salt)
    outputs = small_engine.process.generate(prompts, 60, salts=[salt] * len(prompts))
    assert [len(output.token_ids) for output in outputs] == [60] * len(prompts)
    assert all(output.num_cached_tokens >= 768 for output in outputs)
    small_engine.check_nothing_held()
    for prompt in prompts[:4]:
        assert check_pages(small_engine, prompt, salt) >= held(len(prompt) - 1)


def test_answers_are_found_by_the_next_turn(small_engine: EmbeddedDriver) -> None:
    """Decode-phase saves: hits go beyond the prompt, never beyond what was computed."""
    prompt, salt = prompt_of(300, seed=101), new_salt()
    first = small_engine.store(prompt, salt, max_tokens=470)
    turn = prompt + first.token_ids
    assert small_engine.hit([*turn, 5, 6, 7], salt).num_cached_tokens == 768
    assert check_pages(small_engine, turn, salt) == 768


def test_last_sampled_token_has_no_kv(small_engine: EmbeddedDriver) -> None:
    """300 + 212 tokens are two chunks, but the KV of the last token was never computed."""
    prompt, salt = prompt_of(300, seed=102), new_salt()
    first = small_engine.store(prompt, salt, max_tokens=212)
    assert small_engine.hit([*prompt, *first.token_ids, 5], salt).num_cached_tokens == 256


def test_answers_are_not_saved_unless_asked_for(engine: EmbeddedDriver) -> None:
    """And they are from the moment on that somebody asks for it, while everything runs."""
    prompt, salt = prompt_of(300, seed=103), new_salt()
    first = engine.store(prompt, salt, max_tokens=300)
    assert engine.hit([*prompt, *first.token_ids], salt).num_cached_tokens == 256
    change = "half._config.set('save_decode_cache', wanted)"
    engine.run(change, wanted=True)
    try:
        other = new_salt()
        first = engine.store(prompt, other, max_tokens=300)
        assert engine.hit([*prompt, *first.token_ids], other).num_cached_tokens == 512
    finally:
        engine.run(change, wanted=False)


def test_aborted_requests_leave_nothing_held(engine: EmbeddedDriver) -> None:
    """Aborted before they were looked up, with a load behind them, and on the way through their prompt."""
    prompt, salt = prompt_of(1300, seed=104), new_salt()
    engine.store(prompt[:600], salt, max_tokens=2)
    for num_steps in (0, 1, 2):
        engine.process.call("add", f"aborted-{num_steps}", prompt, 8, salt)
        engine.process.call("step", num_steps)
        engine.process.call("abort", f"aborted-{num_steps}")
        engine.process.call("finish")
        engine.check_nothing_held()
        engine.process.forget()
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached >= 512
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1
