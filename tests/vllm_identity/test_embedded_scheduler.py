"""The scheduler half of the in-process mode against a client that says what we want, step by step."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from lmcache.config.engine.loading import load_engine_config
from lmcache.core.hashing import chunk_digests, make_algorithm
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt
from lmcache.errors import DeclinedError
from lmcache.testing.paged_memory import BLOCK_SIZE, CHUNK_SIZE, make_layout
from tests.conftest import FakeClock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing vLLM warns
    from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
    from lmcache.integration.vllm.embedded_scheduler import EmbeddedScheduler

CHUNK_BLOCKS = CHUNK_SIZE // BLOCK_SIZE


class Client:
    """A `LookupClient` of ranks that all find `num_found` chunks."""

    def __init__(self, world_size: int) -> None:
        self.found_layouts: list[KVLayout] | None = [make_layout(100)] * world_size
        self.declined = ""
        self.num_found = 0
        self.asked: list[tuple[str, Prompt, bool]] = []

    def layouts(self) -> list[KVLayout] | None:
        if self.declined:
            raise DeclinedError(self.declined)
        return self.found_layouts

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
        self.asked.append((lookup_id, prompt, may_wait))
        return min(self.num_found, len(prompt.digests))

    def close(self) -> None:
        """Nothing is open."""


class Site:
    """One scheduler half, and vLLM's part in a few lines: requests get blocks one after the other."""

    def __init__(self, world_size: int, **settings: object) -> None:
        given = {"chunk_size": CHUNK_SIZE, **settings}
        self.config, _ = load_engine_config({}, {f"lmcache.{key}": value for key, value in given.items()})
        self.client, self.clock = Client(world_size), FakeClock()
        self.forgotten: list[set[int]] = []
        self.can_forget = True
        self.half = EmbeddedScheduler(
            self.config, self.client, make_algorithm("blake3"), {"model": "m"}, world_size, BLOCK_SIZE,
            True, True, 1, self._forget, self.clock,
        )  # fmt: skip
        self.blocks: dict[str, list[int]] = {}
        self._next_block = 0

    def _forget(self, block_ids: set[int]) -> bool:
        self.forgotten.append(block_ids)
        return self.can_forget

    def add(self, name: str, num_chunks: float, seed: int = 0) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        tokens = [seed * 1000 + position for position in range(int(num_chunks * CHUNK_SIZE))]
        num_blocks = -(-len(tokens) // BLOCK_SIZE) + 4
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
