"""The in-process mode with more requests than blocks, and requests that are aborted."""

from __future__ import annotations

from tests.vllm_shared.preemption import Preemption
from tests.vllm_shared.prompts import new_salt, prompt_of, worst_error
from tests.vllm_v1.driver import EmbeddedDriver


class TestPreemption(Preemption):
    saves_all_prompts = True


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
