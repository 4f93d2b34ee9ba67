"""Which chunks the ranks store in a step of the in-process mode: those it makes whole, of tokens that are final."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache.embedded.jobs import ChunkStory, StoreJob
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class EmbeddedSaves:
    """Belongs to the scheduler's thread. A store is over when its step is, so no block is held for it.

    `rehash` brings a tracker's chain up to its request's tokens. `saves_decode` and `tells_events`
    are asked anew in every step.
    """

    def __init__(
        self,
        chunk_size: int,
        block_size: int,
        saves_decode: Callable[[], bool],
        tells_events: Callable[[], bool],
        rehash: Callable[[EmbeddedTracker], bool],
    ) -> None:
        self._chunk_size = chunk_size
        self._per_chunk = chunk_size // block_size
        self._saves_decode = saves_decode
        self._tells_events = tells_events
        self._rehash = rehash
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
        num_chunks = min(num_computed, self.final_tokens(tracker.request)) // self._chunk_size
        first = tracker.num_known_chunks
        if num_chunks <= first or not self._rehash(tracker):
            return None
        state = output.kv_connector_block_state
        block_ids = state.get_block_ids(request_id) if state is not None else None
        if not block_ids or len(block_ids[0]) < num_chunks * self._per_chunk:
            return None
        tracker.num_known_chunks = num_chunks
        rows = [
            tuple(block_ids[0][index * self._per_chunk : (index + 1) * self._per_chunk])
            for index in range(first, num_chunks)
        ]
        stories = self._stories(tracker, first, num_chunks) if self._tells_events() else ()
        return StoreJob(root, tracker.cache_salt, tuple(tracker.chain.digests[first:num_chunks]), tuple(rows), stories)

    def _stories(self, tracker: EmbeddedTracker, first: int, last: int) -> tuple[ChunkStory, ...]:
        request, digests = tracker.request, tracker.chain.digests
        lora_name = request.lora_request.lora_name if request.lora_request else None
        tokens: Sequence[int] = request.all_token_ids
        return tuple(
            ChunkStory(
                digests[index - 1] if index else None,
                tuple(tokens[index * self._chunk_size : (index + 1) * self._chunk_size]),
                lora_name,
            )
            for index in range(first, last)
        )
