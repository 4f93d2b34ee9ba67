"""Which chunks the ranks store in a step of the in-process mode: those it makes whole, of tokens that are final."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache.embedded.jobs import ChunkStory, StoreJob
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker, UnfullChunk

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


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
        cached = output.scheduled_cached_reqs
        scheduled = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        scheduled += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        jobs = []
        for request_id, num_computed in scheduled:
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
        digests, rows, num_tokens = chunks
        tracker.num_known_chunks = last
        tracker.is_unfull_known = tracker.is_unfull_known or unfull is not None
        stories = self._stories(tracker, first, digests) if self._tells_events() else ()
        return StoreJob(root, tracker.cache_salt, digests, rows, stories, request_id, num_tokens)

    def _new_unfull(self, tracker: EmbeddedTracker, num_computed: int) -> UnfullChunk | None:
        """The chunk that ends with the prompt, once all of it is computed."""
        if tracker.is_unfull_known or num_computed < tracker.request.num_prompt_tokens:
            return None
        return self._find_unfull(tracker)

    def _place(
        self, tracker: EmbeddedTracker, first: int, last: int, unfull: UnfullChunk | None, block_ids: Sequence[int]
    ) -> tuple[tuple[bytes, ...], tuple[tuple[int, ...], ...], int] | None:
        """Digests of these chunks, their blocks, and how many tokens they have; None where vLLM has fewer blocks."""
        digests = tracker.chain.digests[first:last]
        sizes = [self._per_chunk] * len(digests)
        num_tokens = len(digests) * self._chunk_size
        if unfull is not None:
            digests.append(unfull.digest)
            sizes.append(unfull.num_blocks)
            num_tokens += unfull.num_tokens
        ends = list(itertools.accumulate(sizes, initial=first * self._per_chunk))
        if len(block_ids) < ends[-1]:
            return None
        return tuple(digests), tuple(tuple(block_ids[a:b]) for a, b in itertools.pairwise(ends)), num_tokens

    def _stories(self, tracker: EmbeddedTracker, first: int, digests: Sequence[bytes]) -> tuple[ChunkStory, ...]:
        request, chain, chunk_size = tracker.request, tracker.chain.digests, self._chunk_size
        lora_name = request.lora_request.lora_name if request.lora_request else None
        tokens: Sequence[int] = request.all_token_ids
        stories = []
        for index in range(first, first + len(digests)):
            end = (index + 1) * chunk_size if index < len(chain) else request.num_prompt_tokens
            parent = chain[index - 1] if index else None
            stories.append(ChunkStory(parent, tuple(tokens[index * chunk_size : end]), lora_name))
        return tuple(stories)
