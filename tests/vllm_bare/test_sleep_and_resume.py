"""The smallest connector in an engine that is put to sleep, paused, and reset under running requests."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from lmcache.testing.vllm_models import TINY_LLAMA, write_model, write_weights
from tests.vllm_bare.conftest import BareEngine
from tests.vllm_bare.test_bare_connector import CHUNK, assert_equal

MakePrompt = Callable[..., list[int]]


def check_stores_again(engine: BareEngine, prompt: list[int]) -> None:
    """What is stored from now on is found, and is what vLLM computes now."""
    engine.store(prompt)
    hit = engine.generate(prompt)
    assert hit.num_cached_tokens == 2 * CHUNK
    assert_equal(hit, engine.own_hit(prompt, 2 * CHUNK))


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_forgets_everything(
    engine: BareEngine, make_prompt: MakePrompt, tmp_path: pathlib.Path, level: int
) -> None:
    """Whatever happens to the weights meanwhile: nothing of before is found after."""
    prompt = make_prompt(700)
    engine.store(prompt)
    before = engine.generate(prompt)
    assert before.num_cached_tokens == 2 * CHUNK
    folder = write_model(tmp_path / "model", TINY_LLAMA)
    write_weights(folder, TINY_LLAMA, seed=20 + level)

    engine.inside("sleep_and_wake", level=level, weights=str(folder))

    assert engine.state()["chunks"] == 0
    after = engine.generate(prompt)
    assert after.num_cached_tokens == 0
    assert after.token_ids != before.token_ids, "the weights are the same: the test shows nothing"
    check_stores_again(engine, prompt)


def test_request_that_comes_in_a_pause_is_resumed_with_its_hit(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """Nothing changed but that time passed."""
    prompt = make_prompt(700)
    engine.store(prompt)

    hit = engine.inside("ask_while_paused", prompt=prompt, max_tokens=6)

    assert hit.num_cached_tokens == 2 * CHUNK
    assert hit.token_ids == engine.own_hit(prompt, 2 * CHUNK).token_ids


def test_request_set_back_by_a_reset_is_resumed_and_saved_anew(engine: BareEngine, make_prompt: MakePrompt) -> None:
    prompt = make_prompt(700)
    engine.store(prompt)

    resumed = engine.inside("reset_while_decoding", prompt=prompt, max_tokens=12, preempts=True)

    assert resumed == {"did_reset": True, "num_computed": 0, "chunks": 0, "num_tokens": 12}
    engine.forget()
    hit = engine.generate(prompt)
    assert hit.num_cached_tokens == 2 * CHUNK
    assert_equal(hit, engine.own_hit(prompt, 2 * CHUNK))


def test_request_that_outlives_a_reset_is_not_found_after_it(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """Its blocks are in use, so vLLM cannot forget; the connector does."""
    prompt = make_prompt(700)

    running = engine.inside("reset_while_decoding", prompt=prompt, max_tokens=12, preempts=False)

    assert (running["did_reset"], running["chunks"], running["num_tokens"]) == (False, 0, 12)
    assert running["num_computed"] >= len(prompt)
    engine.forget()
    assert engine.generate(prompt, 1).num_cached_tokens == 0
    check_stores_again(engine, prompt)
