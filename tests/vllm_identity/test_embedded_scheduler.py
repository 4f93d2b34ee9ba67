"""The scheduler half of the in-process mode against a client that says what we want, step by step."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from lmcache.config.engine.loading import load_engine_config
from lmcache.core.hashing import chunk_digests, make_algorithm, tokens_to_bytes
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.errors import DeclinedError
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE, make_layout
from tests.conftest import FakeClock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns
    from lmcache.integration.vllm.embedded_loads import NULL_BLOCK_ID
    from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
    from lmcache.integration.vllm.embedded_scheduler import EmbeddedScheduler

CHUNK_BLOCKS = CHUNK_SIZE // BLOCK_SIZE


class Client:
    """A `LookupClient` of ranks that all find `num_found` chunks."""

    def __init__(self, world_size: int) -> None:
        self.found_layouts: list[KVLayout] | None = [make_layout(100)] * world_size
        self.declined = ""
        self.num_found: int | None = 0
        self.forgotten: list[str] = []
        self.asked: list[tuple[str, Prompt, bool]] = []

    def layouts(self) -> list[KVLayout] | None:
        if self.declined:
            raise DeclinedError(self.declined)
        return self.found_layouts

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        self.asked.append((lookup_id, prompt, may_wait))
        return None if self.num_found is None else min(self.num_found, len(prompt.digests))

    def forget(self, lookup_id: str) -> None:
        self.forgotten.append(lookup_id)

    def name(self) -> str:
        return "Client"

    def close(self) -> None:
        """Nothing is open."""


class Site:
    """One scheduler half, and vLLM's part in a few lines: requests get blocks one after the other."""

    def __init__(
        self, world_size: int, meter: EmbeddedMetrics | None = None, num_unsure_steps: int = 1, **settings: object
    ) -> None:
        given = {"chunk_size": CHUNK_SIZE, **settings}
        self.config, _ = load_engine_config({}, {f"lmcache.{key}": value for key, value in given.items()})
        self.client, self.clock = Client(world_size), FakeClock()
        self.forgotten: list[set[int]] = []
        self.can_forget = True
        self.slept: list[float] = []
        self.half = EmbeddedScheduler(
            self.config, self.client, make_algorithm("blake3"), {"model": "m"}, world_size, BLOCK_SIZE,
            True, True, num_unsure_steps, self._forget, self.clock, sleep=self.slept.append, meter=meter,
        )  # fmt: skip
        self.blocks: dict[str, list[int]] = {}
        self._next_block = NULL_BLOCK_ID + 1

    def _forget(self, block_ids: set[int]) -> bool:
        self.forgotten.append(block_ids)
        return self.can_forget

    def add(self, name: str, num_chunks: float, seed: int = 0) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        tokens = [seed * 1000 + position for position in range(int(num_chunks * CHUNK_SIZE))]
        num_blocks = -(-len(tokens) // BLOCK_SIZE) + 40  # room for answers
        self.blocks[name] = list(range(self._next_block, self._next_block + num_blocks))
        self._next_block += num_blocks
        return Request(name, tokens, SamplingParams(max_tokens=9), None)

    def admit(self, request: Any, num_local: int = 0) -> int | None:
        """As vLLM takes a request from its queue, all that it is offered."""
        offered = self.half.get_num_new_matched_tokens(request, num_local)
        if offered is not None:
            self.half.update_state_after_alloc(request, offered)
            request.num_computed_tokens = num_local + offered
        return offered

    def step(self, **num_scheduled: tuple[Any, int]) -> EmbeddedMetadata:
        """`name=(request, tokens)`: what this step computes."""
        requests = {name: request for name, (request, _) in num_scheduled.items()}
        output: Any = SimpleNamespace(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=list(requests), num_computed_tokens=[each.num_computed_tokens for each in requests.values()]
            ),
            total_num_scheduled_tokens=sum(count for _, count in num_scheduled.values()),
            num_scheduled_tokens={name: count for name, (_, count) in num_scheduled.items()},
            kv_connector_block_state=SimpleNamespace(get_block_ids=lambda name: (self.blocks[name],)),
        )
        meta = self.half.build_connector_meta(output)
        for request, count in num_scheduled.values():
            request.num_computed_tokens += count
        return meta


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


def digests_of(site: Site, request: Any) -> list[bytes]:
    return chunk_digests(make_algorithm("blake3"), site.half.find_root(), request.all_token_ids, CHUNK_SIZE)


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
