"""The scheduler half of the in-process mode against a client that says what we want, step by step."""

from __future__ import annotations

import pytest

from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE
from tests.vllm_identity.scheduler_site import CHUNK_BLOCKS, NULL_BLOCK_ID, Site, digests_of


@pytest.mark.parametrize(("world_size", "saves_at_once"), [(1, True), (2, False)])
def test_several_ranks_save_once_they_are_sure_of_what_was_loaded(world_size: int, saves_at_once: bool) -> None:
    site = Site(world_size)
    site.client.num_found = 2
    request = site.add("a", 4.5)
    assert site.admit(request) == 2 * CHUNK_SIZE
    meta = site.step(a=(request, int(2.5 * CHUNK_SIZE)))
    (load,) = meta.loads
    digests = chunk_digests(make_algorithm("blake3"), site.half.find_root(), request.all_token_ids, CHUNK_SIZE)
    assert (load.lookup_id, [part.digest for part in load.parts]) == ("a", digests[:2])
    assert load.block_ids == set(site.blocks["a"][: 2 * CHUNK_BLOCKS])
    later = site.step(a=(request, 1))
    stores = meta.stores if saves_at_once else later.stores
    assert [store.digests for store in stores] == [tuple(digests[2:])]
    assert (later.stores if saves_at_once else meta.stores) == []
    assert stores[0].block_ids[0] == tuple(site.blocks["a"][2 * CHUNK_BLOCKS : 3 * CHUNK_BLOCKS])


def test_failed_load_ends_trust_in_what_may_share_its_blocks() -> None:
    site = Site(2)
    site.client.num_found = 2
    failing, other = site.add("a", 3), site.add("b", 3, seed=1)
    site.admit(failing)
    site.client.num_found = 0
    site.admit(other)
    site.step(a=(failing, CHUNK_SIZE), b=(other, CHUNK_SIZE))
    failing.num_computed_tokens = BLOCK_SIZE  # vLLM sets it back
    # Whoever is looked up next may have been given its blocks by vLLM's prefix cache: asked again later.
    late = site.add("c", 3, seed=2)
    assert site.admit(late) is None
    assert site.forgotten == [set(site.blocks["a"])]
    assert site.admit(late) == 0
    meta = site.step(a=(failing, 3 * CHUNK_SIZE - BLOCK_SIZE), b=(other, 2 * CHUNK_SIZE), c=(late, 3 * CHUNK_SIZE))
    # What failed is computed anew and saved whole, and what came after it; what ran beside it is not.
    assert [len(store.digests) for store in meta.stores] == [3, 3]
    assert meta.stores[0].digests == tuple(
        chunk_digests(make_algorithm("blake3"), site.half.find_root(), failing.all_token_ids, CHUNK_SIZE)
    )
    assert {block for row in meta.stores[1].block_ids for block in row} <= set(site.blocks["c"])
    site.client.num_found = 2
    failing.num_computed_tokens = 0  # preempted
    assert site.admit(failing) == 0


def test_blocks_that_vllm_cannot_forget_end_saving() -> None:
    site = Site(1)
    site.can_forget = False
    site.client.num_found = 2
    failing = site.add("a", 3)
    site.admit(failing)
    site.step(a=(failing, CHUNK_SIZE))
    failing.num_computed_tokens = 0
    site.half.request_finished(failing)
    site.client.num_found = 0
    late = site.add("b", 3, seed=1)
    site.admit(late)
    assert site.step(b=(late, 3 * CHUNK_SIZE)).stores == []


def test_preempted_request_is_offered_what_is_held_again() -> None:
    site = Site(1)
    site.client.num_found = 2
    request = site.add("a", 3)
    site.admit(request)
    site.step(a=(request, CHUNK_SIZE))
    request.num_computed_tokens, request.num_preemptions = 0, 1
    assert site.admit(request) is None
    assert site.admit(request) == 2 * CHUNK_SIZE


def test_ranks_are_asked_again_after_a_while_and_told_what_nobody_wants() -> None:
    site = Site(1, min_retrieve_tokens=0)
    site.client.num_found = 2
    request = site.add("a", 3)
    for _ in range(3):  # no blocks are free
        assert site.half.get_num_new_matched_tokens(request, 0) == 2 * CHUNK_SIZE
    assert len(site.client.asked) == 1
    site.clock.advance(2.0)
    assert site.half.get_num_new_matched_tokens(request, 0) == 2 * CHUNK_SIZE
    assert len(site.client.asked) == 2
    site.half.request_finished(request)
    assert site.step().released == ["a"]
    assert site.step().released == []
    assert site.half.num_trackers == 0


@pytest.mark.parametrize("num_local_chunks", [1, 2, 3])
def test_tiers_are_waited_for_only_where_vllm_lacks_something(num_local_chunks: int) -> None:
    site = Site(1)
    site.half.get_num_new_matched_tokens(site.add("a", 2.5), num_local_chunks * CHUNK_SIZE)
    ((_, _, may_wait),) = site.client.asked
    assert may_wait == (num_local_chunks < 2)


def test_nothing_is_cached_before_all_ranks_are_known() -> None:
    site = Site(2)
    layouts, site.client.found_layouts = site.client.found_layouts, None
    site.client.num_found = 2
    request = site.add("a", 3)
    assert site.admit(request) == 0
    assert site.step(a=(request, 3 * CHUNK_SIZE)).stores == []
    site.client.found_layouts = layouts
    assert site.admit(site.add("b", 3)) == 2 * CHUNK_SIZE


def test_a_rank_that_declines_ends_all_asking() -> None:
    site = Site(2)
    site.client.declined = "rank 1: no room"
    assert site.admit(site.add("a", 3)) == 0
    site.client.declined = ""
    assert site.admit(site.add("b", 3)) == 0
    assert site.client.asked == []


def test_requests_beyond_the_priority_limit_are_not_stored() -> None:
    site = Site(1, priority_limit=3)
    urgent, idle = site.add("a", 1), site.add("b", 1, seed=1)
    urgent.priority, idle.priority = 3, 4
    for request in (urgent, idle):
        site.admit(request)
    (store,) = site.step(a=(urgent, CHUNK_SIZE), b=(idle, CHUNK_SIZE)).stores
    assert set(store.block_ids[0]) <= set(site.blocks["a"])


def test_answers_are_stored_from_the_moment_they_are_asked_for() -> None:
    site = Site(1)
    request = site.add("a", 1.5)
    site.admit(request)
    site.step(a=(request, request.num_prompt_tokens))
    for wanted, num_stored in ((False, 0), (True, 1), (False, 0)):
        site.config.set("save_decode_cache", wanted)
        request.append_output_token_ids(list(range(CHUNK_SIZE)))
        assert len(site.step(a=(request, CHUNK_SIZE)).stores) == num_stored, wanted
    site.config.set("save_decode_cache", True)
    request.append_output_token_ids([7])
    (store,) = site.step(a=(request, 1)).stores
    assert store.digests == (digests_of(site, request)[3],)


def test_lookup_that_takes_its_time_is_asked_for_again_and_an_idle_engine_waits() -> None:
    site = Site(1, extra_config={"lookup_backoff_time": 0.02})
    site.client.num_found = None
    request, other = site.add("a", 2), site.add("b", 1, seed=1)
    assert site.admit(request) is None
    site.step(b=(other, 5))
    assert site.slept == []  # others have work
    assert site.admit(request) is None
    site.step()
    assert site.slept == [0.02]
    site.step()
    assert site.slept == [0.02]
    site.client.num_found = 1
    assert site.admit(request) == CHUNK_SIZE
    assert site.client.forgotten == []


def test_pending_lookup_of_a_request_that_ends_is_forgotten_and_released() -> None:
    site = Site(1)
    site.client.num_found = None
    request = site.add("a", 2)
    site.admit(request)
    site.half.request_finished(request)
    assert site.client.forgotten == ["a"]
    assert site.step().released == ["a"]
    assert site.half.num_trackers == 0


def test_backoff_is_short_whatever_is_configured() -> None:
    site = Site(1, extra_config={"lookup_backoff_time": 60})
    site.client.num_found = None
    site.admit(site.add("a", 2))
    site.step()
    assert site.slept == [0.1]


def test_rest_of_a_prompt_is_told_where_chunks_are_counted() -> None:
    site = Site(1, enable_chunk_statistics=True)
    for name, num_chunks in (("a", 1.5), ("b", 0.5), ("c", 2)):
        site.admit(site.add(name, num_chunks))
    found = [
        (len(prompt.digests), len(prompt.tail.token_ids) if prompt.tail else 0) for _, prompt, _ in site.client.asked
    ]
    assert found == [(1, CHUNK_SIZE // 2), (0, CHUNK_SIZE // 2), (2, 0)]


def test_a_single_rank_saves_nothing_on_top_of_loads_whose_outcome_vllm_does_not_know_yet() -> None:
    """Where vLLM plans a step before it has seen how the one before went."""
    site = Site(1, num_unsure_steps=2)
    site.client.num_found = 2
    request = site.add("a", 4.5)
    assert site.admit(request) == 2 * CHUNK_SIZE
    assert len(site.step(a=(request, CHUNK_SIZE)).stores) == 1  # the rank itself knows about its own step
    assert site.step(a=(request, CHUNK_SIZE)).stores == []
    (store,) = site.step(a=(request, CHUNK_SIZE // 2)).stores
    assert store.digests == (digests_of(site, request)[3],)


def test_blocks_out_of_a_window_are_neither_saved_nor_loaded() -> None:
    """vLLM puts its null block in their place, which holds anything."""
    site = Site(1)
    request = site.add("a", 3)
    site.admit(request)
    blocks = site.blocks["a"]
    blocks[: CHUNK_BLOCKS + 1] = [NULL_BLOCK_ID] * (CHUNK_BLOCKS + 1)
    (store,) = site.step(a=(request, 3 * CHUNK_SIZE)).stores
    assert store.digests == (digests_of(site, request)[2],)
    assert store.block_ids == (tuple(blocks[2 * CHUNK_BLOCKS : 3 * CHUNK_BLOCKS]),)
    assert store.num_tokens == CHUNK_SIZE
    site.client.num_found = 3
    other = site.add("b", 3.5, seed=1)
    assert site.admit(other) == 3 * CHUNK_SIZE
    site.blocks["b"][: CHUNK_BLOCKS + 1] = [NULL_BLOCK_ID] * (CHUNK_BLOCKS + 1)
    (load,) = site.step(b=(other, CHUNK_SIZE // 2)).loads
    assert [(part.digest, part.first_block, part.block_ids) for part in load.parts] == [
        (digests_of(site, other)[1], 1, tuple(site.blocks["b"][CHUNK_BLOCKS + 1 : 2 * CHUNK_BLOCKS])),
        (digests_of(site, other)[2], 0, tuple(site.blocks["b"][2 * CHUNK_BLOCKS : 3 * CHUNK_BLOCKS])),
    ]
    other.num_computed_tokens = 0
    other.num_preemptions = 0
    site.admit(site.add("c", 1, seed=2))
    assert NULL_BLOCK_ID not in set().union(*site.forgotten)


def test_events_name_the_tokens_of_the_chunks_that_are_saved() -> None:
    site = Site(1, enable_kv_events=True)
    request = site.add("a", 3)
    site.admit(request)
    site.blocks["a"][:1] = [NULL_BLOCK_ID]
    (store,) = site.step(a=(request, 3 * CHUNK_SIZE)).stores
    digests = digests_of(site, request)
    assert store.digests == tuple(digests[1:])
    assert [story.parent for story in store.stories] == digests[:2]
    assert [story.token_ids[0] for story in store.stories] == [CHUNK_SIZE, 2 * CHUNK_SIZE]


def test_a_lookup_under_an_id_that_comes_again_is_not_released_with_the_one_before() -> None:
    site = Site(1)
    site.client.num_found = 2
    request = site.add("a", 3)
    assert site.half.get_num_new_matched_tokens(request, 0) == 2 * CHUNK_SIZE
    site.half.request_finished(request)
    again = site.add("a", 3)
    assert site.half.get_num_new_matched_tokens(again, 0) == 2 * CHUNK_SIZE
    assert site.step().released == []
    site.half.request_finished(again)
    assert site.step().released == ["a"]
