"""More requests than blocks: preempted, resumed, saved and loaded under pressure, and still right."""

from __future__ import annotations

from tests.vllm_engine.driver import Driver, held, new_salt, prompt_of, worst_error

COUNT_PREEMPTIONS = """
engine.num_preempted = 0
preempt = scheduler._preempt_request
def counted(*arguments, **options):
    engine.num_preempted += 1
    return preempt(*arguments, **options)
scheduler._preempt_request = counted
"""


def check_pages(engine: Driver, prompt: list[int], salt: str) -> int:
    """What is loaded for this prompt is what vLLM computes; how many tokens were loaded."""
    engine.process.settle()
    engine.process.forget()
    num_cached, pages = engine.pages(prompt, salt)
    none, expected = engine.pages(prompt, new_salt())
    assert none == 0
    assert worst_error(pages, expected) < 0.1
    return num_cached


def test_outputs_and_saves_survive_preemption(small_engine: Driver) -> None:
    small_engine.run(COUNT_PREEMPTIONS)
    prompts, salt = [prompt_of(480 + 40 * index, seed=80 + index) for index in range(8)], new_salt()
    for attempt in range(2):
        outputs = small_engine.process.generate(prompts, 150, salts=[salt] * len(prompts))
        assert [len(output.token_ids) for output in outputs] == [150] * len(prompts), attempt
    assert small_engine.run("result = engine.num_preempted") > 0
    small_engine.check_nothing_held()
    for prompt, output in zip(prompts, outputs, strict=True):
        # Prompt and answer, saved while it was decoded, begun, preempted and resumed.
        check_pages(small_engine, prompt + output.token_ids, salt)
    small_engine.check_nothing_held()


def test_hits_under_pressure(small_engine: Driver) -> None:
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


def test_answers_are_found_by_the_next_turn(small_engine: Driver) -> None:
    """Decode-phase saves: hits go beyond the prompt, never beyond what was computed."""
    prompt, salt = prompt_of(300, seed=101), new_salt()
    first = small_engine.store(prompt, salt, max_tokens=470)
    turn = prompt + first.token_ids
    # The last token was sampled, not computed: its chunk of 770 tokens is not whole, the third one is.
    hit = small_engine.hit([*turn, 5, 6, 7], salt)
    assert hit.num_cached_tokens == 768
    assert check_pages(small_engine, turn, salt) == 768


def test_last_sampled_token_has_no_kv(small_engine: Driver) -> None:
    """300 + 212 tokens are two chunks, but the KV of the last token was never computed."""
    prompt, salt = prompt_of(300, seed=102), new_salt()
    first = small_engine.store(prompt, salt, max_tokens=212)
    assert small_engine.hit([*prompt, *first.token_ids, 5], salt).num_cached_tokens == 256
