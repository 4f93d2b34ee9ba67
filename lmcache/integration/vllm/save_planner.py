"""Which chunks to save in a step: those it makes whole, of tokens that are final.

Decides for the scheduler half; holds the blocks through `SaveLedger` until all ranks reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmcache.integration.mp.jobs import StoreJob
from lmcache.integration.mp.membership import Joined
from lmcache.integration.vllm.kv_events import EventLog
from lmcache.integration.vllm.metadata import MPWorkerReport
from lmcache.integration.vllm.saves import SaveLedger
from lmcache.integration.vllm.stats import MPConnectorStats
from lmcache.integration.vllm.tracker import RequestTracker

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

Rehash = Callable[[RequestTracker, "Request", Joined], bool]


class SavePlanner:
    """Belongs to the scheduler's thread. `rehash` brings a tracker's chain up to its request's tokens."""

    def __init__(
        self,
        saves: SaveLedger,
        block_size: int,
        saves_decode: bool,
        rehash: Rehash,
        stats: MPConnectorStats,
    ) -> None:
        self._saves = saves
        self._block_size = block_size
        self._saves_decode = saves_decode
        self._rehash = rehash
        self._stats = stats
        self._unsaved: dict[str, tuple[RequestTracker, Request]] = {}
        self._described: dict[int, _Described] = {}
        self.events: EventLog | None = None

    def follow(self, tracker: RequestTracker, request: Request) -> None:
        """Save this request's chunks as they become whole."""
        self._unsaved[request.request_id] = (tracker, request)

    def unfollow(self, request_id: str) -> None:
        self._unsaved.pop(request_id, None)

    def unfollow_all(self, but: str | None = None) -> None:
        """What running requests (`but` one) have computed so far is not to be trusted with its key."""
        self._unsaved = {key: value for key, value in self._unsaved.items() if key == but}

    def final_tokens(self, request: Request) -> int:
        """Leading tokens that no rejection or resampling can change."""
        return int(request.num_tokens if self._saves_decode else request.num_prompt_tokens)

    def plan(self, output: SchedulerOutput, joined: Joined) -> list[StoreJob]:
        """The stores of one step."""
        jobs: list[StoreJob] = []
        if not self._unsaved or not self._saves.is_bound:
            return jobs
        scheduled = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        scheduled += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        for request_id, num_computed in scheduled:
            if request_id in self._unsaved:
                tracker, request = self._unsaved[request_id]
                self._plan_request(output, tracker, request, num_computed, joined, jobs)
        return jobs

    def _plan_request(
        self, output: SchedulerOutput, tracker: RequestTracker, request: Request, num_computed: int, joined: Joined,
        jobs: list[StoreJob],
    ) -> None:  # fmt: skip
        chunk_size = joined.welcome.chunk_size
        final = min(num_computed + output.num_scheduled_tokens[request.request_id], self.final_tokens(request))
        is_current = tracker.root == joined.registered.root
        has_more = not is_current or final // chunk_size > tracker.num_known_chunks
        if has_more and self._rehash(tracker, request, joined) and final // chunk_size > tracker.num_known_chunks:
            job = self._hand_over(output, tracker, request, final // chunk_size, chunk_size)
            if job is not None:
                jobs.append(job)
        if not self._saves_decode and tracker.num_known_chunks >= request.num_prompt_tokens // chunk_size:
            self.unfollow(request.request_id)

    def _hand_over(
        self, output: SchedulerOutput, tracker: RequestTracker, request: Request, num_chunks: int, chunk_size: int
    ) -> StoreJob | None:
        """A store of the chunks up to `num_chunks`, its blocks held; None if there is nothing whole to save."""
        state = output.kv_connector_block_state
        block_ids = state.get_block_ids(request.request_id) if state is not None else None
        if not block_ids:
            return None
        rows = self._whole_chunks(block_ids[0], tracker.num_known_chunks, num_chunks, chunk_size // self._block_size)
        tracker.num_known_chunks = num_chunks
        blocks = [block for _, row in rows for block in row]
        if not rows:
            return None
        if not self._saves.has_room(len(blocks)):
            self._stats.add("dropped_stores")
            return None
        digests = tracker.chain.digests if tracker.chain is not None else []
        job_id = self._saves.open(request.request_id, blocks)
        if self.events is not None:
            self._describe(job_id, digests, request, [index for index, _ in rows], chunk_size)
        chosen = tuple(digests[index] for index, _ in rows)
        num_cached = sum((index + 1) * chunk_size <= tracker.local_tokens for index, _ in rows)
        return StoreJob(job_id, tracker.root, tracker.cache_salt, chosen, tuple(row for _, row in rows), num_cached)

    def _whole_chunks(
        self, block_ids: Sequence[int], first: int, last: int, per_chunk: int
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Chunks all of whose blocks are there, with their blocks."""
        null_block_id, rows = self._saves.null_block_id, []
        for index in range(first, last):
            blocks = tuple(block_ids[index * per_chunk : (index + 1) * per_chunk])
            if len(blocks) == per_chunk and null_block_id not in blocks:
                rows.append((index, blocks))
        return rows

    def _describe(
        self, job_id: int, digests: list[bytes], request: Request, indices: list[int], chunk_size: int
    ) -> None:
        """Remember what a stored chunk's event must say."""
        self._described[job_id] = _Described(
            {digests[i]: digests[i - 1] if i else None for i in indices},
            {digests[i]: list(request.all_token_ids[i * chunk_size : (i + 1) * chunk_size]) for i in indices},
            request.lora_request.lora_name if request.lora_request else None,
        )

    def take_report(self, report: MPWorkerReport) -> None:
        """Saves that ended on some ranks; once on all, their blocks are let go."""
        for job_id, count in report.stores.items():
            if self._saves.report(job_id, count):
                described = self._described.pop(job_id, None)
                if described is not None and self.events is not None:
                    described.tell(self.events, report.stored.get(job_id, ()))


class _Described:
    """What the events of one save must say, by digest."""

    def __init__(
        self, parents: dict[bytes, bytes | None], tokens: dict[bytes, list[int]], lora_name: str | None
    ) -> None:
        self._parents = parents
        self._tokens = tokens
        self._lora_name = lora_name

    def tell(self, events: EventLog, stored: Sequence[bytes]) -> None:
        known = [digest for digest in stored if digest in self._parents]
        events.stored(known, [self._parents[d] for d in known], [self._tokens[d] for d in known], self._lora_name)
