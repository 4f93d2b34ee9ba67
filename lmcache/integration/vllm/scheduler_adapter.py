"""The scheduler half: what is held, what to load, what to save. Decides, never copies.

Life of a request: hashed and hinted when it is added; looked up with locks when vLLM asks
for a hit; loaded by every rank if vLLM takes the offer; saved chunk by chunk as its tokens
are computed; its locks given back as soon as they are of no more use.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmcache.core.hashing import PrefixChain, make_algorithm
from lmcache.core.keys import check_cache_salt
from lmcache.core.layout import check_chunk_size
from lmcache.errors import DeclinedError, KeyFormatError, LMCacheError
from lmcache.integration.mp.jobs import LoadChunk, LoadJob, StoreJob
from lmcache.integration.mp.lookups import NOTHING, LookupClient
from lmcache.integration.mp.membership import Joined, Membership, MembershipConfig
from lmcache.integration.vllm.chunk_extras import ChunkExtras
from lmcache.integration.vllm.kv_events import EventLog
from lmcache.integration.vllm.metadata import MPConnectorMetadata, MPWorkerReport
from lmcache.integration.vllm.mp_config import MPConnectorConfig
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.saves import SaveLedger
from lmcache.integration.vllm.stats import MPConnectorStats
from lmcache.integration.vllm.tracker import LoadState, RequestTracker
from lmcache.protocol import messages as m

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

# A promise older than this is asked for again: it also tells the server that we still wait.
_PROMISE_REUSE_S = 1.0


class LMCacheMPSchedulerAdapter:
    """Belongs to the scheduler's thread, but for its membership's control thread."""

    def __init__(
        self,
        config: MPConnectorConfig,
        model_name: str,
        engine_id: str,
        parallel: ParallelStrategy,
        block_size: int,
        facts: dict[str, object],
        can_load: bool,
        can_save: bool,
        wants_events: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._engine_id = engine_id
        self._parallel = parallel
        self._block_size = block_size
        # Taken once, now: files that change later are not the weights this engine has loaded.
        self._facts = json.dumps(facts, sort_keys=True).encode()
        self._can_load = can_load
        self._can_save = can_save
        self._wants_events = wants_events
        self._clock = clock
        self._epoch = b""
        self._trackers: dict[str, RequestTracker] = {}
        self._unsaved: dict[str, Request] = {}
        self._new_loads: list[LoadJob] = []
        self._loading: set[str] = set()
        self._described: dict[int, _Described] = {}
        self._said: set[str] = set()
        self.saves = SaveLedger(parallel.world_size, config.held_blocks_fraction)
        self.stats = MPConnectorStats()
        self.events: EventLog | None = None
        self.membership = Membership(
            MembershipConfig(config.url, config.token, config.mq_timeout_s, config.heartbeat_s),
            secrets.randbits(63) | 1,
            "scheduler",
            self._make_registration,
            on_removed=self._on_removed,
        )
        self._lookups = LookupClient(self.membership, config.lookup_timeout_s, clock)

    def start(self) -> None:
        self.membership.start()

    def shutdown(self) -> None:
        self.membership.stop()
        self._lookups.close()

    def _make_registration(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterScheduler:
        """Runs in the control thread."""
        check_chunk_size(welcome.chunk_size, self._block_size)
        if self._config.hash_algorithm and self._config.hash_algorithm != welcome.hash_algorithm:
            raise DeclinedError(
                f"lmcache.mp.hash_algorithm is {self._config.hash_algorithm}, the server hashes with "
                f"{welcome.hash_algorithm}: set both alike"
            )
        return m.RegisterScheduler(
            self._engine_id, self._model_name, self._parallel.world_size, self._facts, nonce,
            self._epoch, self._wants_events, self._config.token,
        )  # fmt: skip

    def _on_removed(self, digests: bytes) -> None:
        if self.events is not None:
            self.events.removed(digests)

    def _current(self) -> Joined | None:
        """The registration in force, once its root is known and belongs to the present epoch."""
        joined = self.membership.current
        if joined is None or not joined.registered.root or joined.epoch != self._epoch:
            return None
        return joined

    # Arrival and lookup

    def on_new_request(self, request: Request) -> None:
        joined = self._current()
        if joined is None or not joined.welcome.wants_hints:
            return
        tracker = self._tracker(request)
        if tracker is not None and self._rehash(tracker, request, joined):
            self._lookups.hint(request.request_id, tracker.cache_salt, tracker.chain.digests)  # type: ignore[union-attr]

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens we can load beyond those vLLM has; None: ask again in the next step."""
        tracker = self._tracker(request)
        joined = self._current()
        if tracker is None or joined is None or tracker.has_failed or not self._can_load:
            return 0, False
        if tracker.load_state is LoadState.PENDING:
            # Preempted while a synchronous load is not confirmed: its blocks are gone, its outcome is still to come.
            return None, False
        tracker.local_tokens = num_computed_tokens
        if not self._rehash(tracker, request, joined):
            return 0, False
        if not self._is_promise_fresh(tracker, joined):
            promise = self._lookups.lookup(
                request.request_id, tracker.cache_salt, tracker.chain.digests, self._config.lookup_wait_s  # type: ignore[union-attr]
            )  # fmt: skip
            tracker.session_boot_id = joined.boot_id
            if promise is None:
                return None, False
            self._take_promise(tracker, promise)
            self._count_lookup(tracker, joined)
        return self._offer(tracker, request, joined)

    def _offer(self, tracker: RequestTracker, request: Request, joined: Joined) -> tuple[int, bool]:
        is_async = self._config.load_mode == "async"
        held = len(tracker.promise.chunks) * joined.welcome.chunk_size
        # A synchronous load must leave a token to compute; an asynchronous one recomputes it by itself.
        num_tokens = min(held, request.num_tokens - (0 if is_async else 1)) - tracker.local_tokens
        if num_tokens <= 0:
            return 0, False
        return num_tokens, is_async

    def _is_promise_fresh(self, tracker: RequestTracker, joined: Joined) -> bool:
        promise = tracker.promise
        return (
            bool(promise.chunks)
            and promise.boot_id == joined.boot_id
            and tracker.num_asked_chunks == len(tracker.chain.digests)  # type: ignore[union-attr]
            and self._clock() - tracker.promised_at_s < _PROMISE_REUSE_S
        )

    def _take_promise(self, tracker: RequestTracker, promise: Any) -> None:
        tracker.promise = promise
        tracker.promised_at_s = self._clock()
        tracker.num_asked_chunks = len(tracker.chain.digests) if tracker.chain is not None else 0
        tracker.num_known_chunks = max(tracker.num_known_chunks, len(promise.chunks))

    def _count_lookup(self, tracker: RequestTracker, joined: Joined) -> None:
        self.stats.add("lookups")
        self.stats.add("lookup_tokens", tracker.num_asked_chunks * joined.welcome.chunk_size)
        self.stats.add("hit_tokens", len(tracker.promise.chunks) * joined.welcome.chunk_size)

    def _tracker(self, request: Request) -> RequestTracker | None:
        """The request's tracker, or None if its keys cannot be made."""
        tracker = self._trackers.get(request.request_id)
        if tracker is None:
            salt = request.cache_salt or ""
            try:
                check_cache_salt(salt)
                if request.resumable:
                    raise DeclinedError("its input streams in, so tokens that were hashed may still change")
            except (KeyFormatError, DeclinedError) as error:
                self._say_once(f"a request is served without cache: {error}")
                return None
            tracker = RequestTracker(request.request_id, salt, ChunkExtras(request))
            self._trackers[request.request_id] = tracker
            if self._can_save:
                self._unsaved[request.request_id] = request
        return tracker

    def _rehash(self, tracker: RequestTracker, request: Request, joined: Joined) -> bool:
        """Bring the chain up to the request's tokens. False: there is no whole chunk, or no key."""
        chunk_size = joined.welcome.chunk_size
        if tracker.root != joined.registered.root or tracker.chain is None:
            tracker.root = joined.registered.root
            tracker.chain = PrefixChain(make_algorithm(joined.welcome.hash_algorithm), tracker.root, chunk_size)
            tracker.promise, tracker.num_known_chunks = NOTHING, 0
        num_tokens = self._hashable_tokens(request)
        if num_tokens // chunk_size > len(tracker.chain.digests):
            try:
                tracker.extras.extend(num_tokens, chunk_size)
                tracker.chain.extend(request.all_token_ids, tracker.extras.by_chunk, num_tokens)
            except LMCacheError as error:
                self._say_once(f"a request is served without cache: {error}")
                self._unsaved.pop(request.request_id, None)
                return False
        return bool(tracker.chain.digests)

    def _hashable_tokens(self, request: Request) -> int:
        return int(request.num_tokens if self._config.save_decode_cache else max(request.num_prompt_tokens, 0))

    # Allocation and loads

    def update_state_after_alloc(self, request: Request, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """vLLM took `num_external_tokens` of our offer: none, all, or less."""
        tracker = self._trackers.get(request.request_id)
        if tracker is None or tracker.load_state is LoadState.PENDING:
            return
        if num_external_tokens <= 0:
            self._drop_promise(tracker)
            return
        chunks = self._load_chunks(tracker, block_ids, num_external_tokens)
        self._lookups.release(request.request_id, tracker.promise, tracker.last_chunk_needed)
        tracker.load_state = LoadState.PENDING
        self._loading.add(request.request_id)
        tracker.loaded_tokens = num_external_tokens
        self._new_loads.append(LoadJob(request.request_id, tracker.promise.pool_id, chunks))

    def _load_chunks(
        self, tracker: RequestTracker, block_ids: Sequence[int], num_external_tokens: int
    ) -> tuple[LoadChunk, ...]:
        """Which blocks of which chunk go where; a load may start and end inside a chunk."""
        blocks_per_chunk = self._blocks_per_chunk(tracker)
        first = tracker.local_tokens // self._block_size
        last = -(-(tracker.local_tokens + num_external_tokens) // self._block_size)
        null_block_id = self.saves.null_block_id if self.saves.is_bound else None
        chunks = []
        for index in range(first // blocks_per_chunk, -(-last // blocks_per_chunk)):
            start, end = max(first, index * blocks_per_chunk), min(last, (index + 1) * blocks_per_chunk)
            for run_start, run in _runs_without(null_block_id, start, list(block_ids[start:end])):
                chunks.append(LoadChunk(tracker.promise.chunks[index], run_start - index * blocks_per_chunk, run))
        tracker.last_chunk_needed = -(-last // blocks_per_chunk)
        return tuple(chunks)

    def _blocks_per_chunk(self, tracker: RequestTracker) -> int:
        joined = self.membership.last
        if joined is None:
            raise DeclinedError("there is no server to have promised anything")
        return joined.welcome.chunk_size // self._block_size

    def _drop_promise(self, tracker: RequestTracker) -> None:
        if tracker.promise.chunks:
            self._lookups.release(tracker.request_id, tracker.promise, 0)
            tracker.promise = NOTHING

    # Each step

    def build_connector_meta(self, output: SchedulerOutput) -> MPConnectorMetadata:
        meta = MPConnectorMetadata(loads=self._new_loads)
        self._new_loads = []
        joined = self._current()
        # What is computed on top of a synchronous load is worth nothing until every rank has
        # confirmed that load, also for requests that share its blocks: save in a later step.
        is_unsure = self._config.load_mode == "sync" and bool(self._loading)
        if self._unsaved and joined is not None and self.saves.is_bound and not is_unsure:
            for new in output.scheduled_new_reqs:
                self._save(output, new.req_id, new.num_computed_tokens, joined, meta)
            cached = output.scheduled_cached_reqs
            for request_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
                self._save(output, request_id, num_computed, joined, meta)
        return meta

    def _save(
        self, output: SchedulerOutput, request_id: str, num_computed: int, joined: Joined, meta: MPConnectorMetadata
    ) -> None:
        """Hand over the chunks that this step makes whole, of tokens that are final."""
        request = self._unsaved.get(request_id)
        if request is None:
            return
        tracker = self._trackers[request_id]
        chunk_size = joined.welcome.chunk_size
        final = min(num_computed + output.num_scheduled_tokens[request_id], self._hashable_tokens(request))
        if tracker.root == joined.registered.root and final // chunk_size <= tracker.num_known_chunks:
            self._stop_saving_if_done(tracker, request, chunk_size)
            return
        if self._rehash(tracker, request, joined) and final // chunk_size > tracker.num_known_chunks:
            self._hand_over(output, tracker, request, final // chunk_size, joined, meta)
        self._stop_saving_if_done(tracker, request, chunk_size)

    def _hand_over(
        self, output: SchedulerOutput, tracker: RequestTracker, request: Request, num_chunks: int, joined: Joined,
        meta: MPConnectorMetadata,
    ) -> None:  # fmt: skip
        state = output.kv_connector_block_state
        block_ids = state.get_block_ids(request.request_id) if state is not None else None
        if not block_ids:
            return
        per_chunk = joined.welcome.chunk_size // self._block_size
        first = tracker.num_known_chunks
        tracker.num_known_chunks = num_chunks
        null_block_id = self.saves.null_block_id
        rows = []
        for index in range(first, num_chunks):
            blocks = tuple(block_ids[0][index * per_chunk : (index + 1) * per_chunk])
            if len(blocks) == per_chunk and null_block_id not in blocks:
                rows.append((index, blocks))
        if not rows:
            return
        if not self.saves.has_room(len(rows) * per_chunk):
            self.stats.add("dropped_stores")
            return
        digests = tracker.chain.digests  # type: ignore[union-attr]
        job_id = self.saves.open(request.request_id, [block for _, blocks in rows for block in blocks])
        chosen = tuple(digests[index] for index, _ in rows)
        meta.stores.append(
            StoreJob(job_id, tracker.root, tracker.cache_salt, chosen, tuple(blocks for _, blocks in rows))
        )
        if self.events is not None:
            self._describe(job_id, tracker, request, [index for index, _ in rows], joined.welcome.chunk_size)

    def _stop_saving_if_done(self, tracker: RequestTracker, request: Request, chunk_size: int) -> None:
        if not self._config.save_decode_cache and tracker.num_known_chunks >= request.num_prompt_tokens // chunk_size:
            self._unsaved.pop(request.request_id, None)

    def _describe(
        self, job_id: int, tracker: RequestTracker, request: Request, indices: list[int], chunk_size: int
    ) -> None:
        """Remember what a stored chunk's event must say."""
        digests = tracker.chain.digests  # type: ignore[union-attr]
        self._described[job_id] = _Described(
            {digests[i]: digests[i - 1] if i else None for i in indices},
            {digests[i]: list(request.all_token_ids[i * chunk_size : (i + 1) * chunk_size]) for i in indices},
            request.lora_request.lora_name if request.lora_request else None,
        )

    # Reports from the workers

    def update_connector_output(self, output: Any) -> None:
        report = output.kv_connector_worker_meta
        if isinstance(report, MPWorkerReport):
            self._take_report(report)
        for request_id in output.finished_recving or ():
            self._load_ended(request_id, request_id in (output.failed_recving or ()))

    def _take_report(self, report: MPWorkerReport) -> None:
        for job_id, count in report.stores.items():
            if self.saves.report(job_id, count):
                described = self._described.pop(job_id, None)
                if described is not None and self.events is not None:
                    described.tell(self.events, report.stored.get(job_id, ()))
        for request_id, count in report.loads.items():
            tracker = self._trackers.get(request_id)
            if tracker is None:
                continue
            tracker.has_failed |= request_id in report.failed_loads
            tracker.num_ranks_loaded += count
            if tracker.num_ranks_loaded >= self._parallel.world_size:
                self._load_ended(request_id, tracker.has_failed)

    def _load_ended(self, request_id: str, has_failed: bool) -> None:
        """Every rank is done with the promised places."""
        tracker = self._trackers.get(request_id)
        if tracker is None:
            return
        tracker.load_state, tracker.num_ranks_loaded = LoadState.NONE, 0
        self._loading.discard(request_id)
        if has_failed:
            tracker.has_failed = True
            # What was held may be gone: let it be stored again as it is computed.
            tracker.num_known_chunks = 0
            self.stats.add("failed_loads")
        else:
            self.stats.add("loaded_tokens", tracker.loaded_tokens)
        self._drop_promise(tracker)
        if tracker.is_finished:
            self._end(tracker)

    # The end

    def request_finished(self, request: Request) -> dict[str, Any] | None:
        tracker = self._trackers.get(request.request_id)
        self._unsaved.pop(request.request_id, None)
        if tracker is None:
            return None
        answer = self._token_stats(tracker, request)
        if tracker.load_state is LoadState.PENDING:
            tracker.is_finished = True
        else:
            self._end(tracker)
        return answer

    def _token_stats(self, tracker: RequestTracker, request: Request) -> dict[str, Any] | None:
        if "cached_token_stats" not in (request.kv_transfer_params or {}):
            return None
        joined = self.membership.last
        held = tracker.num_known_chunks * (joined.welcome.chunk_size if joined is not None else 0)
        return {
            "num_vllm_cached_tokens": tracker.local_tokens,
            "num_lmcache_cached_tokens": min(held, request.num_prompt_tokens),
            "num_lmcache_extra_cached_tokens": tracker.loaded_tokens,
        }

    def _end(self, tracker: RequestTracker) -> None:
        self._trackers.pop(tracker.request_id, None)
        self._lookups.end(tracker.request_id, tracker.session_boot_id)

    def reset_cache(self, timeout_s: float) -> bool:
        """The engine's state changed: nothing stored so far is its KV any more. False if a server
        that we are registered with did not confirm it."""
        was_joined = self._current() is not None
        self._epoch = secrets.token_bytes(16)
        is_told = self._lookups.reset(self._epoch, timeout_s) if was_joined else True
        self.membership.refresh()
        # What running requests have computed belongs to the old state: none of it may be saved
        # under the new root, not even the chunks that become whole later.
        self._unsaved.clear()
        for tracker in self._trackers.values():
            if tracker.load_state is LoadState.NONE:
                self._drop_promise(tracker)
        # A request that goes on keeps KV of the old state, which must not be stored under the new root.
        self._unsaved = {key: one for key, one in self._unsaved.items() if not one.num_computed_tokens}
        return is_told

    def take_stats(self) -> MPConnectorStats | None:
        if self.stats.is_empty():
            return None
        stats, self.stats = self.stats, MPConnectorStats()
        return stats

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            logger.warning("%s", text)


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


def _runs_without(null_block_id: int | None, start: int, block_ids: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Consecutive blocks with their first position, null blocks (out of a sliding window) left out."""
    if null_block_id is None or null_block_id not in block_ids:
        return [(start, tuple(block_ids))] if block_ids else []
    runs: list[tuple[int, tuple[int, ...]]] = []
    current: list[int] = []
    for position, block_id in enumerate([*block_ids, null_block_id], start):
        if block_id != null_block_id:
            current.append(block_id)
        elif current:
            runs.append((position - len(current), tuple(current)))
            current = []
    return runs
