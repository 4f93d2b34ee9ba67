"""Hits of the in-process mode: equal to vLLM's own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.equality import HitEquality
from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, worst_error
from tests.vllm_v1.conftest import running, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver


@pytest.fixture(scope="module")
def uncached_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    """vLLM's prefix caching off: all that is known is known to us. Small chunks, another hash, prompts in steps."""
    options = {"enable_prefix_caching": False, "max_num_batched_tokens": 512}
    connector = v1_connector(chunk_size=128, pre_caching_hash_algorithm="sha256_cbor")
    yield from running(spec_of(model_folder, connector, options=options))


class TestHitEquality(HitEquality):
    uncached_chunk = 128
    uncached_lengths = (129, 500, 513)


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_a_prompt_that_is_held_whole_leaves_one_token_to_compute(engine: EmbeddedDriver, num_chunks: int) -> None:
    prompt, salt = prompt_of(num_chunks * CHUNK, seed=2), new_salt()
    cold = engine.store(prompt, salt, max_tokens=4)
    num_cached, pages = engine.pages(prompt, salt)
    assert num_cached == num_chunks * CHUNK - 1
    hit = engine.hit(prompt, salt)
    assert (hit.num_cached_tokens, hit.token_ids) == (num_chunks * CHUNK - 1, cold.token_ids)
    # The last token is computed anew, in other company: a rounding away from what was stored.
    assert worst_error(pages, engine.pages(prompt, new_salt())[1]) < 0.1
