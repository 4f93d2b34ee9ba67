"""`save_unfull_chunk` on a real vLLM: a prompt is found to its last token, and what follows that is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vllm_shared.prompts import BLOCK, CHUNK, held, new_salt, prompt_of, worst_error
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.settings import changed, lagging

# With little and with much in the last block, in one block and in two, without a whole chunk before them.
LENGTHS = (2, 100, 127, 129, 130, 300, 383, 386, 511, 1000)

_PREEMPT = """
request = scheduler.requests[engine.add("preempted", prompt, 240, salt)]
while request.num_output_tokens < 20:
    engine.step()
scheduler.reset_prefix_cache(reset_running_requests=True)
engine.step()
result = half._trackers[request.request_id].num_found_tokens, request.num_preemptions
"""


@pytest.fixture(params=[False, True], ids=["whole steps", "by layers"])
def keeping(engine: EmbeddedDriver, request: pytest.FixtureRequest) -> Iterator[EmbeddedDriver]:
    with changed(engine, save_unfull_chunk=True, use_layerwise=request.param):
        yield engine


def check_next_turn(engine: EmbeddedDriver, turn: list[int], salt: str, num_cached_min: int) -> None:
    """What is there for these tokens, in vLLM's own cache or in ours, is what vLLM computes."""
    num_cached, pages = engine.pages(turn, salt)
    assert num_cached >= num_cached_min
    none, expected = engine.pages(turn, new_salt())
    assert none == 0
    if len(turn) >= BLOCK:
        assert worst_error(pages, expected) < 0.1


@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_is_found_whole_and_goes_on(keeping: EmbeddedDriver, length: int) -> None:
    """The block that was loaded in part is filled by the answer, and is then right in vLLM's cache and in ours."""
    prompt, salt = prompt_of(length, seed=200), new_salt()
    cold = keeping.store(prompt, salt, max_tokens=1)
    assert cold.num_cached_tokens == 0
    with changed(keeping, save_decode_cache=True):
        hit = keeping.hit(prompt, salt, max_tokens=BLOCK + 3)
        # One token of the last block is no more than what must be computed anyway.
        assert hit.num_cached_tokens == length - 1
        turn = [*prompt, *hit.token_ids]
        num_filled = (len(turn) - 1) // BLOCK * BLOCK
        check_next_turn(keeping, turn, salt, num_filled)  # from vLLM's own cache
        keeping.process.forget()
        check_next_turn(keeping, turn, salt, held(len(turn) - 1))


def test_longer_prompt_takes_whole_chunks_and_keeps_its_own_end(keeping: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(300, seed=201), new_salt()
    keeping.store(prompt, salt)
    longer = prompt_of(700, seed=202, shared=prompt)
    keeping.process.forget()
    check_next_turn(keeping, longer, salt, CHUNK)
    keeping.process.forget()
    num_cached, pages = keeping.pages(longer, salt)
    assert num_cached == 699
    assert worst_error(pages, keeping.pages(longer, new_salt())[1]) < 0.1
    assert keeping.hit(prompt_of(300, seed=203, shared=prompt[:299]), salt).num_cached_tokens == CHUNK
    assert keeping.hit(prompt[:299], salt).num_cached_tokens == CHUNK
    assert keeping.hit(prompt, salt).num_cached_tokens == 299


def test_part_that_vllm_has_is_not_loaded_again(keeping: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(400, seed=204), new_salt()
    keeping.store(prompt, salt)
    keeping.one(prompt[: 3 * BLOCK], salt, max_tokens=1)
    check_next_turn(keeping, prompt, salt, 399)


def test_is_neither_saved_nor_found_while_the_setting_is_off(engine: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(300, seed=205), new_salt()
    engine.store(prompt, salt)
    with changed(engine, save_unfull_chunk=True):
        assert engine.hit(prompt, salt).num_cached_tokens == CHUNK
        assert engine.hit(prompt, salt).num_cached_tokens == 299
    assert engine.hit(prompt, salt).num_cached_tokens == CHUNK


def test_preempted_request_goes_on_in_the_block_that_it_loads(keeping: EmbeddedDriver) -> None:
    """Its prompt ends in a block that is loaded in the very step that computes its first answers into it."""
    prompt, salt = prompt_of(300, seed=206), new_salt()
    with lagging(keeping):
        num_found, num_preempted = keeping.run(_PREEMPT, prompt=prompt, salt=salt)
    assert (num_found, num_preempted) == (300, 1)
    with changed(keeping, save_decode_cache=True):
        output = keeping.process.call("finish")["preempted"]
        assert len(output.token_ids) == 240
        assert keeping.check_pages([*prompt, *output.token_ids], salt) == 2 * CHUNK


def test_pressure(small_engine: EmbeddedDriver) -> None:
    small_engine.count_preemptions()
    prompts, salt = [prompt_of(480 + 40 * index, seed=207 + index) for index in range(8)], new_salt()
    with changed(small_engine, save_unfull_chunk=True, use_layerwise=True):
        outputs = small_engine.process.generate(prompts, 150, salts=[salt] * len(prompts))
        assert [len(output.token_ids) for output in outputs] == [150] * len(prompts)
        assert small_engine.num_preempted > 0
        for prompt, output in zip(prompts, outputs, strict=True):
            small_engine.check_pages(prompt + output.token_ids, salt)
    small_engine.check_nothing_held()
