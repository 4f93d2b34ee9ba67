"""vLLM's connector interface, met by the smallest connector there is: hits, references, failures, resets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lmcache.testing.vllm_spec import Output
from tests.vllm_bare.conftest import BareEngine

MakePrompt = Callable[..., list[int]]
CHUNK = 256


def assert_equal(hit: Output, own: Output) -> None:
    assert (hit.token_ids, hit.logprobs) == (own.token_ids, own.logprobs)


def assert_close(one: Output, other: Output, tolerance: float) -> None:
    """For two ways to split the same computation, which round differently."""
    assert one.token_ids == other.token_ids
    for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
        for token in ours.keys() & theirs.keys():
            assert ours[token] == pytest.approx(theirs[token], abs=tolerance)


@pytest.mark.parametrize("num_tokens", [CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK + 1, 700, 1100])
def test_hit_equals_own_hit(engine: BareEngine, make_prompt: MakePrompt, num_tokens: int) -> None:
    prompt = make_prompt(num_tokens)
    engine.store(prompt)

    hit = engine.generate(prompt)

    assert hit.num_cached_tokens == num_tokens // CHUNK * CHUNK
    assert_equal(hit, engine.own_hit(prompt, hit.num_cached_tokens))


def test_shared_prefix(engine: BareEngine, make_prompt: MakePrompt) -> None:
    first = make_prompt(800)
    engine.store(first)
    second = make_prompt(900, start=first[:600])

    hit = engine.generate(second)

    assert hit.num_cached_tokens == 2 * CHUNK
    assert_equal(hit, engine.own_hit(second, hit.num_cached_tokens))


def test_below_one_chunk_nothing_is_kept(engine: BareEngine, make_prompt: MakePrompt) -> None:
    prompt = make_prompt(CHUNK - 1)
    engine.store(prompt)

    assert engine.generate(prompt).num_cached_tokens == 0


def test_full_prompt_hit_leaves_one_token_to_compute(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """The oracle computes the same last token as a decode step, over KV of another prefill."""
    head = make_prompt(2 * CHUNK - 1)
    decoded = engine.generate(head, 6)
    prompt = [*head, decoded.token_ids[0]]
    engine.forget()
    engine.store(prompt)

    hit = engine.generate(prompt, 5)

    assert hit.num_cached_tokens == (2 * CHUNK if engine.is_async else 2 * CHUNK - 1)
    rest = Output(decoded.token_ids[1:], decoded.logprobs[1:], 0, None)
    assert_close(hit, rest, 0.05)


@pytest.mark.parametrize("num_local_blocks", [1, 2, 3])
def test_load_starts_where_own_blocks_end(engine: BareEngine, make_prompt: MakePrompt, num_local_blocks: int) -> None:
    prompt = make_prompt(700)
    engine.store(prompt)
    engine.generate(prompt[: num_local_blocks * engine.block_size + 5], 1)

    hit = engine.generate(prompt)

    assert hit.num_cached_tokens == 2 * CHUNK
    assert_equal(hit, engine.own_hit(prompt, hit.num_cached_tokens))


def test_own_blocks_reach_further(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """Nothing is loaded where vLLM has as much by itself."""
    prompt = make_prompt(700)
    engine.generate(prompt, 1)

    assert engine.generate(prompt, 1).num_cached_tokens == 699 // engine.block_size * engine.block_size


@pytest.mark.parametrize("num_trimmed_blocks", [1, 2])
def test_offer_trimmed_by_vllm(engine: BareEngine, make_prompt: MakePrompt, num_trimmed_blocks: int) -> None:
    prompt, num_trimmed = make_prompt(700), num_trimmed_blocks * engine.block_size
    engine.store(prompt)

    hit = engine.inside("generate_trimmed", prompt=prompt, max_tokens=6, num_trimmed=num_trimmed)

    assert hit.num_cached_tokens == 2 * CHUNK - num_trimmed
    assert_equal(hit, engine.own_hit(prompt, hit.num_cached_tokens))


def test_offer_not_taken(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """A request for logprobs of its prompt computes all of it."""
    prompt = make_prompt(600)
    engine.store(prompt)

    assert engine.generate(prompt, 2, sampling={"prompt_logprobs": 1}).num_cached_tokens == 0


def test_blocks_are_held_until_saved(engine: BareEngine, make_prompt: MakePrompt) -> None:
    saved = engine.inside("store_of_a_finished_request", prompt=make_prompt(700))

    assert saved == {"during": 2 * CHUNK // engine.block_size, "after": 0, "could_reset": False}


def test_abort_during_a_load(engine: BareEngine, make_prompt: MakePrompt) -> None:
    if not engine.is_async:
        pytest.skip("a synchronous load cannot be interrupted")
    prompt = make_prompt(700)
    engine.store(prompt)

    aborted = engine.inside("abort_during_load", prompt=prompt)

    assert aborted["status"] == "WAITING_FOR_REMOTE_KVS"
    assert (aborted["during"] > 0, aborted["after"]) == (True, 0)
    hit = engine.generate(prompt)
    assert_equal(hit, engine.own_hit(prompt, 2 * CHUNK))


def test_preemption_with_few_blocks(engine: BareEngine, make_prompt: MakePrompt) -> None:
    prompts = [make_prompt(520) for _ in range(6)]

    crowded = engine.inside("count_preemptions", prompts=prompts, max_tokens=140)

    assert crowded["preemptions"] > 0
    assert crowded["lengths"] == [140] * 6
    engine.forget()
    hit = engine.generate(prompts[-1])
    assert hit.num_cached_tokens == 2 * CHUNK
    assert_equal(hit, engine.own_hit(prompts[-1], hit.num_cached_tokens))


@pytest.mark.parametrize("num_failures", [1, 3])
def test_failed_load_is_recomputed(engine: BareEngine, make_prompt: MakePrompt, num_failures: int) -> None:
    prompt = make_prompt(700)
    engine.store(prompt)
    cold = engine.generate(prompt, 4, salts=["never stored"])

    failed, after = engine.inside("generate_with_failures", prompt=prompt, num_failures=num_failures, recomputes=True)

    assert failed.finish_reason == "length"
    assert failed.token_ids == cold.token_ids
    assert_equal(after, engine.own_hit(prompt, 2 * CHUNK, 4))


def test_failed_load_ends_the_request_where_the_user_wants_it(engine: BareEngine, make_prompt: MakePrompt) -> None:
    prompt = make_prompt(700)
    engine.store(prompt)

    failed, after = engine.inside("generate_with_failures", prompt=prompt, num_failures=1, recomputes=False)

    assert failed.finish_reason == "error"
    assert_equal(after, engine.own_hit(prompt, 2 * CHUNK, 4))


def test_reset_forgets_everything(engine: BareEngine, make_prompt: MakePrompt) -> None:
    prompt = make_prompt(600)
    engine.store(prompt)

    assert engine._process.call("reset_with_connector")

    assert engine.state()["chunks"] == 0
    assert engine.generate(prompt).num_cached_tokens == 0
    engine.forget()
    assert engine.generate(prompt).num_cached_tokens == 2 * CHUNK


def test_reset_during_a_load(engine: BareEngine, make_prompt: MakePrompt) -> None:
    """What was promised is gone, so the load fails and the prompt is computed."""
    if not engine.is_async:
        pytest.skip("a synchronous load cannot be interrupted")
    prompt = make_prompt(700)
    engine.store(prompt)
    cold = engine.generate(prompt, 4, salts=["never stored"])
    engine.forget()

    assert engine.inside("reset_during_load", prompt=prompt) == cold.token_ids
