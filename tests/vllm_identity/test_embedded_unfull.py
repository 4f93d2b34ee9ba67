"""The scheduler half of the in-process mode: chunks at the end of a prompt that are not whole."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache.core.hashing import make_algorithm, tokens_to_bytes
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE
from tests.vllm_identity.scheduler_site import CHUNK_BLOCKS, Site, digests_of


def unfull_digest(site: Site, request: Any) -> bytes:
    """By hand, of the tokens beyond the prompt's whole chunks."""
    whole = digests_of(site, request)
    tail = request.all_token_ids[len(whole) * CHUNK_SIZE : request.num_prompt_tokens]
    prefix = whole[-1] if whole else site.half.find_root()
    return make_algorithm("blake3").next_digest(prefix, tokens_to_bytes(tail), b"")


@pytest.mark.parametrize("num_chunks", [0.0625, 0.5, 1.75, 3.0])
def test_last_chunk_of_a_prompt_is_stored_unwhole_once_it_is_computed(num_chunks: float) -> None:
    site = Site(1, save_unfull_chunk=True)
    request = site.add("a", num_chunks)
    site.admit(request)
    num_tokens = request.num_prompt_tokens
    if num_tokens > 1:
        assert all(
            len(row) == CHUNK_BLOCKS for job in site.step(a=(request, num_tokens - 1)).stores for row in job.block_ids
        )
    num_left = num_tokens - request.num_computed_tokens
    stores = site.step(a=(request, num_left)).stores
    if num_chunks == 3.0:
        assert [store.digests for store in stores] == [(digests_of(site, request)[-1],)]
        return
    (store,) = stores
    assert store.digests == (unfull_digest(site, request),)
    first = num_tokens // CHUNK_SIZE * CHUNK_BLOCKS
    assert store.block_ids == (tuple(site.blocks["a"][first : -(-num_tokens // BLOCK_SIZE)]),)
    assert (store.request_id, store.num_tokens) == ("a", num_tokens % CHUNK_SIZE)
    assert site.step(a=(request, 1)).stores == []


def test_whole_prompt_is_found_by_the_chunk_that_is_not_whole() -> None:
    site = Site(1, save_unfull_chunk=True)
    site.client.num_found = 3
    request = site.add("a", 2.5)
    assert site.admit(request) == int(2.5 * CHUNK_SIZE) - 1
    ((_, prompt, _),) = site.client.asked
    assert prompt.digests == (*digests_of(site, request), unfull_digest(site, request))
    assert prompt.tail_blocks == CHUNK_BLOCKS // 2
    meta = site.step(a=(request, 1))
    (load,) = meta.loads
    assert [(part.digest, len(part.block_ids), part.chunk_blocks) for part in load.parts] == [
        (prompt.digests[0], CHUNK_BLOCKS, 0), (prompt.digests[1], CHUNK_BLOCKS, 0),
        (prompt.digests[2], CHUNK_BLOCKS // 2, CHUNK_BLOCKS // 2),
    ]  # fmt: skip
    assert load.num_tokens == int(2.5 * CHUNK_SIZE) - 1
    assert meta.stores == []  # all of it is known


def test_less_than_all_of_it_counts_in_whole_chunks() -> None:
    site = Site(1, save_unfull_chunk=True)
    site.client.num_found = 2
    request = site.add("a", 2.5)
    assert site.admit(request) == 2 * CHUNK_SIZE
    (store,) = site.step(a=(request, CHUNK_SIZE // 2)).stores
    assert store.digests == (unfull_digest(site, request),)


def test_chunk_that_became_whole_is_stored_and_asked_for_as_such() -> None:
    site = Site(1, save_unfull_chunk=True, save_decode_cache=True)
    request = site.add("a", 1.5)
    site.admit(request)
    (store,) = site.step(a=(request, request.num_prompt_tokens)).stores
    assert store.digests == (*digests_of(site, request), unfull_digest(site, request))
    request.append_output_token_ids(list(range(CHUNK_SIZE)))
    (store,) = site.step(a=(request, CHUNK_SIZE)).stores
    assert store.digests == (digests_of(site, request)[1],)
    assert len(store.block_ids[0]) == CHUNK_BLOCKS
    site.clock.advance(2.0)
    site.half.get_num_new_matched_tokens(request, 0)  # preempted
    _, prompt, _ = site.client.asked[-1]
    assert (prompt.digests, prompt.tail_blocks) == (tuple(digests_of(site, request)), 0)


def test_preempted_request_finds_its_prompt_by_the_chunk_that_is_not_whole() -> None:
    """And computes the rest into the same block."""
    site = Site(1, save_unfull_chunk=True)
    request = site.add("a", 1.5)
    site.admit(request)
    site.step(a=(request, request.num_prompt_tokens))
    request.append_output_token_ids([1, 2, 3])
    request.num_computed_tokens, request.num_preemptions = 0, 1
    site.client.num_found = 2
    site.clock.advance(2.0)
    assert site.admit(request) == request.num_prompt_tokens
    (load,) = site.step(a=(request, 3)).loads
    assert load.num_tokens == request.num_prompt_tokens


def test_nothing_of_it_is_hashed_or_asked_for_while_the_setting_is_off() -> None:
    site = Site(1)
    request = site.add("a", 1.5)
    site.admit(request)
    assert site.client.asked[0][1].tail_blocks == 0
    (store,) = site.step(a=(request, request.num_prompt_tokens)).stores
    assert store.digests == tuple(digests_of(site, request))
    assert site.half._trackers["a"].unfull is None
    # Switched on while the request runs: from the next step on.
    site.config.set("save_unfull_chunk", True)
    (store,) = site.step(a=(request, 1)).stores
    assert store.digests == (unfull_digest(site, request),)
