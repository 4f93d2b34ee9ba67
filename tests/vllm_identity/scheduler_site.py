"""The scheduler half of the in-process mode, a client that says what we want, and vLLM's part in a few lines."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from lmcache.config.engine.loading import load_engine_config
from lmcache.core.hashing import chunk_digests, make_algorithm
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


def digests_of(site: Site, request: Any) -> list[bytes]:
    return chunk_digests(make_algorithm("blake3"), site.half.find_root(), request.all_token_ids, CHUNK_SIZE)
