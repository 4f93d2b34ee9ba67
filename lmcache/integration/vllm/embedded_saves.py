"""Which chunks the ranks store in a step of the in-process mode: those it makes whole, of tokens that are final."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmcache.embedded.jobs import ChunkStory, StoreJob
from lmcache.integration.vllm.embedded_loads import NULL_BLOCK_ID
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker, UnfullChunk

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Chunk `index` of a request, and where it is."""

    index: int
    digest: bytes
    block_ids: tuple[int, ...]
    num_tokens: int


class EmbeddedSaves:
    """Belongs to the scheduler's thread. A store is over when its step is, so no block is held for it.

    `rehash` brings a tracker's chain up to its request's tokens; `find_unfull`: the prompt's last chunk, where it is
    not whole and is wanted. `saves_decode` and `tells_events` are asked anew in every step.
    """

    def __init__(
        self,
        chunk_size: int,
        block_size: int,
        saves_decode: Callable[[], bool],
        tells_events: Callable[[], bool],
        rehash: Callable[[EmbeddedTracker], bool],
        find_unfull: Callable[[EmbeddedTracker], UnfullChunk | None],
    ) -> None:
        self._chunk_size = chunk_size
        self._per_chunk = chunk_size // block_size
        self._saves_decode = saves_decode
        self._tells_events = tells_events
        self._rehash = rehash
        self._find_unfull = find_unfull
        self._unsaved: dict[str, EmbeddedTracker] = {}

    def follow(self, tracker: EmbeddedTracker) -> None:
        """Save this request's chunks as they become whole."""
        self._unsaved[tracker.request_id] = tracker

    def unfollow(self, request_id: str) -> None:
        self._unsaved.pop(request_id, None)

    def unfollow_all(self, but: str | None = None) -> None:
        """What running requests (`but` one) have computed so far is not to be trusted with its key."""
        self._unsaved = {key: value for key, value in self._unsaved.items() if key == but}

    def final_tokens(self, request: Request) -> int:
        """Leading tokens that no rejection or resampling can change."""
        return int(request.num_tokens if self._saves_decode() else request.num_prompt_tokens)

    def plan(self, output: SchedulerOutput, root: bytes) -> list[StoreJob]:
        jobs: list[StoreJob] = []
        if not self._unsaved:
            return jobs
        cached = output.scheduled_cached_reqs
        new = ((request.req_id, request.num_computed_tokens) for request in output.scheduled_new_reqs)
        for request_id, num_computed in itertools.chain(
            new, zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        ):
            tracker = self._unsaved.get(request_id)
            job = self._plan_request(output, tracker, num_computed, root) if tracker is not None else None
            if job is not None:
                jobs.append(job)
        return jobs

    def _plan_request(
        self, output: SchedulerOutput, tracker: EmbeddedTracker, num_computed: int, root: bytes
    ) -> StoreJob | None:
        request_id = tracker.request_id
        num_computed += output.num_scheduled_tokens[request_id]
        first = tracker.num_known_chunks
        last = min(num_computed, self.final_tokens(tracker.request)) // self._chunk_size
        if last > first and not self._rehash(tracker):
            return None
        unfull = self._new_unfull(tracker, num_computed)
        if last <= first and unfull is None:
            return None
        state = output.kv_connector_block_state
        block_ids = state.get_block_ids(request_id) if state is not None else None
        chunks = self._place(tracker, first, last, unfull, block_ids[0] if block_ids else ())
        if chunks is None:
            return None
        tracker.num_known_chunks = last
        tracker.is_unfull_known = tracker.is_unfull_known or unfull is not None
        return self._make_job(tracker, root, [chunk for chunk in chunks if NULL_BLOCK_ID not in chunk.block_ids])

    def _make_job(self, tracker: EmbeddedTracker, root: bytes, chunks: Sequence[_Chunk]) -> StoreJob | None:
        if not chunks:
            return None
        digests = tuple(chunk.digest for chunk in chunks)
        rows = tuple(chunk.block_ids for chunk in chunks)
        stories = tuple(self._story(tracker, chunk) for chunk in chunks) if self._tells_events() else ()
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_cached = sum((chunk.index + 1) * self._chunk_size <= tracker.local_tokens for chunk in chunks)
        return StoreJob(root, tracker.cache_salt, digests, rows, stories, tracker.request_id, num_tokens, num_cached)

    def _new_unfull(self, tracker: EmbeddedTracker, num_computed: int) -> UnfullChunk | None:
        """The chunk that ends with the prompt, once all of it is computed."""
        if tracker.is_unfull_known or num_computed < tracker.request.num_prompt_tokens:
            return None
        return self._find_unfull(tracker)

    def _place(
        self, tracker: EmbeddedTracker, first: int, last: int, unfull: UnfullChunk | None, block_ids: Sequence[int]
    ) -> list[_Chunk] | None:
        """These chunks and their blocks; None where vLLM has fewer blocks."""
        digests = tracker.chain.digests[first:last]
        sizes = [(self._per_chunk, self._chunk_size)] * len(digests)
        if unfull is not None:
            digests.append(unfull.digest)
            sizes.append((unfull.num_blocks, unfull.num_tokens))
        ends = list(itertools.accumulate((num_blocks for num_blocks, _ in sizes), initial=first * self._per_chunk))
        if len(block_ids) < ends[-1]:
            return None
        rows = [tuple(block_ids[start:end]) for start, end in itertools.pairwise(ends)]
        return [
            _Chunk(index, digest, row, num_tokens)
            for index, (digest, row, (_, num_tokens)) in enumerate(zip(digests, rows, sizes, strict=True), first)
        ]

    def _story(self, tracker: EmbeddedTracker, chunk: _Chunk) -> ChunkStory:
        request, start = tracker.request, chunk.index * self._chunk_size
        lora_name = request.lora_request.lora_name if request.lora_request else None
        parent = tracker.chain.digests[chunk.index - 1] if chunk.index else None
        return ChunkStory(parent, tuple(request.all_token_ids[start : start + chunk.num_tokens]), lora_name)
