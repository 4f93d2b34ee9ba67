"""`enable_async_loading` on a real vLLM: lookups answer in a later step, and requests that wait for one may go."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, same
from tests.vllm_v1.conftest import running, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.settings import changed
from tests.vllm_v1.waiting import wait_until

# Lookups reach the rank, and are not answered.
_HANG = "engine.asked = []; worker.lookup_later = lambda lookup_id, *rest: engine.asked.append(lookup_id)"
_STEP_UNTIL_ASKED = """
import time
deadline_s = time.monotonic() + 30
while not engine.asked and time.monotonic() < deadline_s:
    engine.step()
"""
_ANSWER = "del worker.lookup_later; result = len(engine.asked)"


@pytest.fixture(scope="module")
def async_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    yield from running(spec_of(model_folder, v1_connector(enable_async_loading=True)))


@pytest.fixture
def engine(async_engine: EmbeddedDriver) -> Iterator[EmbeddedDriver]:
    yield async_engine
    async_engine.check_nothing_held()


def test_hit_equals_prefix_hit(engine: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(1000, seed=400), new_salt()
    engine.store(prompt[: 3 * CHUNK], salt)
    hit = engine.hit(prompt, salt)
    assert hit.num_cached_tokens == 3 * CHUNK
    assert same(hit, engine.prefix_hit(prompt, 3 * CHUNK))


def test_many_requests_at_once(engine: EmbeddedDriver) -> None:
    stem, salt = prompt_of(600, seed=401), new_salt()
    engine.store(stem, salt)
    prompts = [prompt_of(700 + 100 * index, seed=402 + index, shared=stem) for index in range(5)]
    outputs = engine.process.generate(prompts, 20, salts=[salt] * len(prompts))
    assert [output.num_cached_tokens for output in outputs] == [2 * CHUNK] * len(prompts)


def test_request_that_is_aborted_while_its_lookup_is_under_way(engine: EmbeddedDriver) -> None:
    """An engine with nothing else to do asks now and then, and does not spin."""
    prompt, salt = prompt_of(600, seed=410), new_salt()
    engine.store(prompt, salt)
    engine.run(_HANG)
    try:
        engine.process.call("add", "aborted", prompt, 8, salt)
        engine.run(_STEP_UNTIL_ASKED)
        elapsed_s = engine.run(
            "import time; began_s = time.monotonic()\n"
            "for _ in range(10): engine.step()\n"
            "result = time.monotonic() - began_s"
        )
        engine.process.call("abort", "aborted")
        engine.process.call("finish")
    finally:
        assert engine.run(_ANSWER) == 1
    assert elapsed_s >= 10 * 0.01
    engine.check_nothing_held()
    assert engine.hit(prompt, salt).num_cached_tokens == 2 * CHUNK


def test_lookup_that_is_never_answered_is_a_miss(engine: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(600, seed=411), new_salt()
    cold = engine.store(prompt, salt, max_tokens=4)
    engine.run(_HANG)
    try:
        with changed(engine, lookup_timeout_ms=100):
            missed = engine.hit(prompt, salt)
        wait_until(lambda: engine.run("result = len(engine.asked)") == 1, "the rank is asked")
    finally:
        assert engine.run(_ANSWER) == 1
    wait_until(lambda: engine.run("result = half.client.current.is_up"), "it gives a sign of life")
    assert missed.num_cached_tokens == 0
    assert same(missed, cold)
