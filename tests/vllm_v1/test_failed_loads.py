"""Hits that were promised and cannot be loaded: recomputed, never wrong, and told to nobody's cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vllm_shared.prompts import new_salt, prompt_of, same, worst_error
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.settings import CLEAR_AT, STOP_CLEARING, changed
from tests.vllm_v1.waiting import wait_until


@pytest.fixture(params=["retrieve.check", "retrieve.copied"])
def broken_step(request: pytest.FixtureRequest, engine: EmbeddedDriver) -> Iterator[str]:
    yield request.param
    engine.run(STOP_CLEARING)


def test_cleared_before_the_load_is_recomputed(engine: EmbeddedDriver, broken_step: str) -> None:
    prompt, salt = prompt_of(1300, seed=40), new_salt()
    engine.store(prompt[:600], salt, max_tokens=2)
    expected = engine.one(prompt, new_salt())
    engine.process.forget()
    engine.run(CLEAR_AT, step=broken_step)
    output = engine.one(prompt, salt)
    engine.run(STOP_CLEARING)
    assert output.finish_reason == "length"
    assert same(output, expected)
    assert any("a load failed" in line for line in engine.log_lines())
    # Whatever was computed on top of the broken load is not what was saved.
    engine.process.forget()
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == 1280
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1


def test_failed_request_is_never_offered_anything_again(engine: EmbeddedDriver) -> None:
    """Its chunks are still held, and every load of them fails: one attempt, no loop."""
    prompt, salt = prompt_of(900, seed=41), new_salt()
    engine.store(prompt, salt, max_tokens=4)
    expected = engine.one(prompt, new_salt())
    engine.process.forget()
    engine.run(
        "engine.attempts = []\n"
        "worker.engine.retrieve = lambda job: engine.attempts.append(job.lookup_id) or 'broken on purpose'\n"
    )
    output = engine.one(prompt, salt)
    num_attempts = engine.run("del worker.engine.retrieve; result = len(engine.attempts)")
    assert num_attempts == 1
    assert same(output, expected)
    assert engine.hit(prompt, salt).num_cached_tokens == 768
    # What the broken load should have let go of ends by itself; here, by hand.
    engine.run("worker.engine.locks.release_all()")


def test_blocks_shared_with_a_failed_load_are_not_saved(engine: EmbeddedDriver, broken_step: str) -> None:
    """The load's blocks are in vLLM's prefix cache before they are read: others compute on them."""
    prompt, salt = prompt_of(600, seed=43), new_salt()
    engine.store(prompt, salt, max_tokens=2)
    prompts = [prompt_of(1100 + 30 * index, seed=44 + index, shared=prompt[:512]) for index in range(3)]
    engine.run(CLEAR_AT, step=broken_step)
    outputs = engine.process.generate(prompts, 3, salts=[salt] * 3)
    engine.run(STOP_CLEARING)
    assert [output.finish_reason for output in outputs] == ["length"] * 3
    for one in prompts:
        engine.process.forget()
        _, pages = engine.pages(one, salt)
        assert worst_error(pages, engine.pages(one, new_salt())[1]) < 0.1


def test_request_that_ends_after_a_failed_load_leaves_no_wrong_block_in_vllm(engine: EmbeddedDriver) -> None:
    """Aborted before it could recompute: vLLM's prefix cache must not hand its blocks to others."""
    prompt, salt = prompt_of(1300, seed=47), new_salt()
    engine.store(prompt[:600], salt, max_tokens=2)
    engine.run(CLEAR_AT, step="retrieve.check")
    engine.process.call("add", "aborted", prompt, 8, salt)
    engine.process.call("step", 1)
    engine.process.call("abort", "aborted")
    engine.process.call("finish")
    engine.run(STOP_CLEARING)
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == 0
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1


def test_rank_that_does_not_answer_costs_one_deadline(engine: EmbeddedDriver) -> None:
    """Then prompts miss at once, and hit again once it answers."""
    prompt, salt = prompt_of(600, seed=48), new_salt()
    engine.store(prompt, salt)
    engine.run(
        "engine.pause = __import__('threading').Event()\n"
        "engine.num_asked = 0\n"
        "def hang(*arguments):\n"
        "    engine.num_asked += 1\n"
        "    engine.pause.wait(30)\n"
        "    return 0\n"
        "worker.lookup = hang\n"
        # It is asked over its socket, as a rank in another process is.
        "from lmcache.embedded.lookup import here\n"
        "engine.offers, here._targets = here._targets, {}\n"
    )
    with changed(engine, lookup_timeout_ms=100):
        for number in range(3):
            assert engine.one(prompt_of(600, seed=f"silent {number}"), salt, max_tokens=1).num_cached_tokens == 0
        wait_until(lambda: engine.run("result = engine.num_asked") > 0, "the rank is asked")
        assert engine.run("result = engine.num_asked, half.client.current.is_up") == (1, False)
    engine.run("del worker.lookup; engine.pause.set()")
    # Still over its socket: it must give a sign of life first.
    wait_until(lambda: engine.hit(prompt, salt, max_tokens=1).num_cached_tokens == 512, "the rank is asked again")
    engine.run("from lmcache.embedded.lookup import here; here._targets = engine.offers")
    assert engine.hit(prompt, salt).num_cached_tokens == 512
    assert any("did not answer" in line for line in engine.log_lines())
