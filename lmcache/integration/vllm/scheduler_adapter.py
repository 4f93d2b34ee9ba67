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
from lmcache.integration.mp.jobs import LoadJob
from lmcache.integration.mp.lookups import NOTHING, LookupClient
from lmcache.integration.mp.membership import Joined, Membership, MembershipConfig
from lmcache.integration.vllm.chunk_extras import ChunkExtras
from lmcache.integration.vllm.load_plan import chunks_needed, plan_load
from lmcache.integration.vllm.load_reports import LoadReports
from lmcache.integration.vllm.metadata import MPConnectorMetadata
from lmcache.integration.vllm.mp_config import MPConnectorConfig
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.save_planner import SavePlanner
from lmcache.integration.vllm.saves import SaveLedger
from lmcache.integration.vllm.stats import MPConnectorStats
from lmcache.integration.vllm.tracker import LoadState, RequestTracker
from lmcache.protocol import messages as m
from lmcache.telemetry.said_once import SaidOnce

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


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
        self._new_loads: list[LoadJob] = []
        self._once = SaidOnce(logger)
        self._is_async = config.load_mode == "async"
        self._is_doubtful = False
        self.stats = MPConnectorStats()
        self.saves = SaveLedger(parallel.world_size, config.held_blocks_fraction)
        self.planner = SavePlanner(self.saves, block_size, config.save_decode_cache, self._rehash, self.stats)
        self._loads = LoadReports(
            parallel.world_size, self._trackers, self.planner, self.saves, self.stats, self._load_is_over
        )
        self.membership = Membership(
            MembershipConfig(config.url, config.token, config.mq_timeout_s, config.heartbeat_s),
            secrets.randbits(63) | 1,
            "scheduler",
            self._make_registration,
            on_removed=self._on_removed,
        )
        self._lookups = LookupClient(self.membership, config.lookup_timeout_s, clock, config.prefetch_timeout_s)

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
        if self.planner.events is not None:
            self.planner.events.removed(digests)

    def _current(self) -> Joined | None:
        """The registration in force, once its root is known and belongs to the present epoch."""
        joined = self.membership.current
        if joined is None or not joined.registered.root or joined.epoch != self._epoch:
            return None
        return joined

    # Arrival and lookup

    def on_new_request(self, request: Request) -> None:
        self._lookups.prepare()
        joined = self._current()
        if joined is None or not joined.welcome.wants_hints:
            return
        tracker = self._tracker(request)
        if tracker is not None and self._rehash(tracker, request, joined):
            self._lookups.hint(request.request_id, tracker.cache_salt, tracker.digests)
            # What it fetches ahead is for this request alone: it must hear of an end before the first lookup.
            tracker.session_boot_id = joined.boot_id

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens we can load beyond those vLLM has; None: ask again in the next step."""
        tracker = self._tracker(request)
        joined = self._current()
        if tracker is None:
            return 0, False
        is_loading = tracker.load_state is LoadState.PENDING
        if not is_loading:
            tracker.local_tokens = num_computed_tokens
        if joined is None or tracker.has_failed or not self._can_load:
            return 0, False
        if is_loading:
            # Preempted while a synchronous load is not confirmed: its blocks are gone, its outcome is still to come.
            return None, False
        if not self._rehash(tracker, request, joined):
            return 0, False
        if not tracker.is_promise_fresh(joined.boot_id, self._clock()):
            promise = self._lookups.lookup(
                request.request_id, tracker.cache_salt, tracker.digests, self._config.lookup_wait_s
            )  # fmt: skip
            tracker.session_boot_id = joined.boot_id
            if promise is None:
                return None, False
            tracker.take_promise(promise, self._clock())
            self._count_lookup(tracker, joined)
        return self._offer(tracker, request)

    def _offer(self, tracker: RequestTracker, request: Request) -> tuple[int, bool]:
        held = len(tracker.promise.chunks) * tracker.promise.chunk_size
        # A synchronous load must leave a token to compute; an asynchronous one recomputes it by itself.
        num_tokens = min(held, request.num_tokens - (0 if self._is_async else 1)) - tracker.local_tokens
        if num_tokens <= 0:
            return 0, False
        return num_tokens, self._is_async

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
                self._once.warn(f"a request is served without cache: {error}")
                return None
            tracker = RequestTracker(request.request_id, salt, ChunkExtras(request))
            self._trackers[request.request_id] = tracker
            if self._can_save and not self._is_doubtful:
                self.planner.follow(tracker, request)
        return tracker

    def _rehash(self, tracker: RequestTracker, request: Request, joined: Joined) -> bool:
        """Bring the chain up to the request's tokens. False: there is no whole chunk, or no key."""
        chunk_size = joined.welcome.chunk_size
        if tracker.root != joined.registered.root or tracker.chain is None:
            tracker.root = joined.registered.root
            tracker.chain = PrefixChain(make_algorithm(joined.welcome.hash_algorithm), tracker.root, chunk_size)
            tracker.promise, tracker.num_known_chunks = NOTHING, 0
        num_tokens = self.planner.final_tokens(request)
        if num_tokens // chunk_size > len(tracker.chain.digests):
            try:
                tracker.extras.extend(num_tokens, chunk_size)
                tracker.chain.extend(request.all_token_ids, tracker.extras.by_chunk, num_tokens)
            except LMCacheError as error:
                self._once.warn(f"a request is served without cache: {error}")
                self.planner.unfollow(request.request_id)
                return False
        return bool(tracker.chain.digests)

    # Allocation and loads

    def update_state_after_alloc(self, request: Request, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """vLLM took `num_external_tokens` of our offer: none, all, or less."""
        tracker = self._trackers.get(request.request_id)
        if tracker is None or tracker.load_state is LoadState.PENDING:
            return
        if num_external_tokens <= 0:
            self._drop_promise(tracker)
            return
        null_block_id = self.saves.null_block_id if self.saves.is_bound else None
        promise, first = tracker.promise, tracker.local_tokens
        chunks = plan_load(promise, self._block_size, first, num_external_tokens, block_ids, null_block_id)
        self._lookups.release(request.request_id, promise, chunks_needed(promise, first + num_external_tokens))
        self._loads.begin(tracker, num_external_tokens, tuple(block_ids[first // self._block_size :]))
        self._new_loads.append(LoadJob(request.request_id, promise.pool_id, chunks, tracker.cache_salt))

    def _drop_promise(self, tracker: RequestTracker) -> None:
        if tracker.promise.chunks:
            self._lookups.release(tracker.request_id, tracker.promise, 0)
            tracker.promise = NOTHING

    # Each step

    def build_connector_meta(self, output: SchedulerOutput) -> MPConnectorMetadata:
        self._lookups.prepare()
        meta = MPConnectorMetadata(loads=self._new_loads)
        self._new_loads = []
        joined = self._current()
        # What is computed on top of a synchronous load is worth nothing until every rank has
        # confirmed that load, also for requests that share its blocks: save in a later step.
        is_unsure = not self._is_async and self._loads.is_any_pending
        if joined is not None and not is_unsure:
            meta.stores = self.planner.plan(output, joined)
        return meta

    # Reports from the workers

    def update_connector_output(self, output: Any) -> None:
        self._loads.take(output)

    def _load_is_over(self, tracker: RequestTracker) -> None:
        self._drop_promise(tracker)
        if tracker.is_finished:
            self._end(tracker)

    # The end

    def request_finished(self, request: Request) -> dict[str, Any] | None:
        tracker = self._trackers.get(request.request_id)
        self.planner.unfollow(request.request_id)
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
        return tracker.token_stats(joined.welcome.chunk_size if joined is not None else 0, request.num_prompt_tokens)

    def _end(self, tracker: RequestTracker) -> None:
        self._trackers.pop(tracker.request_id, None)
        self._lookups.end(tracker.request_id, tracker.session_boot_id)

    def reset_cache(self, timeout_s: float) -> bool:
        """The engine's state changed: nothing stored so far is its KV any more.

        False if a server that we are registered with did not confirm it, or if vLLM could not
        forget its own blocks: then nothing is saved until a reset succeeds, since new requests
        may build on KV of the old state.
        """
        was_joined = self._current() is not None
        self._epoch = secrets.token_bytes(16)
        is_told = self._lookups.reset(self._epoch, timeout_s) if was_joined else True
        # What running requests have computed belongs to the old state: none of it may be saved
        # under the new root, not even the chunks that become whole later.
        self.planner.unfollow_all()
        self._is_doubtful = not self.saves.is_pool_empty()
        if self._is_doubtful:
            logger.warning("vLLM still holds KV from before the reset: nothing is saved until a reset succeeds")
        for tracker in self._trackers.values():
            if tracker.load_state is LoadState.NONE:
                self._drop_promise(tracker)
        if self.planner.events is not None:
            self.planner.events.all_removed()
        self.membership.refresh()
        return is_told and not self._is_doubtful
