"""The scheduler half of the in-process mode: what the ranks hold, what to load, what to save.

Loads are synchronous: they end before the forward pass of their step. Of a step that loads, several ranks
save nothing, since none knows how the others' loads went; a single rank saves unless its own failed. While
vLLM does not know how an earlier step's loads went, nobody saves: what it computes may rest on them.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.core.hashing import ChunkHashAlgorithm, PrefixChain
from lmcache.core.identity import make_root
from lmcache.core.keys import check_cache_salt
from lmcache.embedded.jobs import RetrieveJob
from lmcache.embedded.lookup.base import LookupClient
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.errors import DeclinedError, KeyFormatError, LMCacheError
from lmcache.integration.vllm.chunk_extras import ChunkExtras
from lmcache.integration.vllm.embedded_loads import make_load
from lmcache.integration.vllm.embedded_lookups import EmbeddedLookups
from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
from lmcache.integration.vllm.embedded_saves import EmbeddedSaves
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker, UnconfirmedLoads, UnfullChunk
from lmcache.telemetry.said_once import SaidOnce

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

_EPOCH_BYTES = 16

# Takes blocks out of vLLM's prefix cache; False: it cannot.
ForgetCached = Callable[[set[int]], bool]
# Compared by identity; None where it cannot be seen.
FindPrefixCache = Callable[[], object | None]


def no_prefix_cache() -> None:
    return None


class EmbeddedScheduler:
    """Belongs to the scheduler's thread. `config` is read anew wherever a setting may change.

    `num_unsure_steps`: after so many steps vLLM has taken the outcome of a load into account.
    `find_prefix_cache`: what vLLM's own prefix cache lives in, another object after each reset.
    """

    def __init__(
        self,
        config: LMCacheEngineConfig,
        client: LookupClient,
        algorithm: ChunkHashAlgorithm,
        facts: dict[str, object],
        world_size: int,
        block_size: int,
        can_load: bool,
        can_save: bool,
        num_unsure_steps: int,
        forget_cached: ForgetCached,
        clock: Callable[[], float] = time.monotonic,
        find_prefix_cache: FindPrefixCache = no_prefix_cache,
        sleep: Callable[[float], None] = time.sleep,
        meter: EmbeddedMetrics | None = None,
    ) -> None:
        self._config = config
        self.client = client
        self._algorithm = algorithm
        # Taken once, now, and in the form that every other way to make a root sees.
        self._facts: dict[str, object] = json.loads(json.dumps(facts, sort_keys=True))
        self._world_size = world_size
        self._block_size = block_size
        self._can_load = can_load
        self._can_save = can_save
        self._forget_cached = forget_cached
        self._meter = meter or EmbeddedMetrics.unshown()
        self._lookups = EmbeddedLookups(config, client, clock, sleep, self._meter)
        self._find_prefix_cache = find_prefix_cache
        self._prefix_cache = find_prefix_cache()
        self._epoch = b""
        self._root = b""
        self._declined = ""
        self._is_doubtful = False
        self._step = 0
        self._trackers: dict[str, EmbeddedTracker] = {}
        self._new_loads: list[EmbeddedTracker] = []
        self._unconfirmed = UnconfirmedLoads(num_unsure_steps)
        self._once = SaidOnce(logger)
        self.saves = EmbeddedSaves(
            config.chunk_size, block_size, lambda: config.save_decode_cache, lambda: config.enable_kv_events,
            self._rehash, self._find_unfull,
        )  # fmt: skip

    # Identity

    def find_root(self) -> bytes:
        """The root of this engine's keys, empty while some rank has not told its layout."""
        if self._root or self._declined:
            return self._root
        try:
            layouts = self.client.layouts()
        except DeclinedError as error:
            self._declined = str(error)
            logger.warning("lmcache declines to cache for this engine: %s", error)
            return b""
        if layouts is not None:
            self._root = make_root(self._algorithm, self._facts, layouts, self._config.chunk_size, self._epoch)
        return self._root

    def _look_for_reset(self) -> None:
        """Begin anew, under keys nobody has, where vLLM reset its own prefix cache.

        vLLM tells this connector of no reset, and nothing of what it is for. It may have replaced
        its weights, and then nothing stored before is its KV any more.
        """
        current = self._find_prefix_cache()
        if self._prefix_cache is None or current is None:
            self._prefix_cache = current
        if current is self._prefix_cache:
            return
        self._prefix_cache = current
        self._epoch, self._root = secrets.token_bytes(_EPOCH_BYTES), b""
        self._unconfirmed.clear()
        self.saves.unfollow_all()
        for tracker in self._trackers.values():
            self._lookups.release(tracker)
        self._trackers.clear()
        self._once.warn("vLLM reset its prefix cache: what was stored before is not used any more")

    # Lookup

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> int | None:
        """Tokens that can be loaded beyond those vLLM has; None: ask again in the next step."""
        self._look_for_reset()
        if self._look_for_failures():
            return None  # its blocks may be those that vLLM has just been told to forget
        tracker = self._tracker(request, num_computed_tokens)
        if tracker is None:
            return 0
        tracker.local_tokens = num_computed_tokens
        if tracker.has_failed or not self._can_load or not self._rehash(tracker):
            return 0
        if not self._lookups.ask(tracker, self._root, self._find_unfull(tracker), num_computed_tokens):
            return None
        found = tracker.num_found_tokens
        # A token must be left to compute.
        num_tokens = min(found, request.num_tokens - 1) - num_computed_tokens
        if num_tokens <= 0 or found < self._config.min_retrieve_tokens:
            self._lookups.release(tracker)
            return 0
        return int(num_tokens)

    def _tracker(self, request: Request, num_computed_tokens: int) -> EmbeddedTracker | None:
        """The request's tracker, or None if its keys cannot be made."""
        tracker = self._trackers.get(request.request_id)
        if tracker is not None or not self.find_root():
            return tracker
        salt = request.cache_salt or ""
        try:
            check_cache_salt(salt)
            if request.resumable:
                raise DeclinedError("its input streams in, so tokens that were hashed may still change")
        except (KeyFormatError, DeclinedError) as error:
            self._once.warn(f"a request is served without cache: {error}")
            return None
        chain = PrefixChain(self._algorithm, self._root, self._config.chunk_size)
        tracker = EmbeddedTracker(request, salt, ChunkExtras(request), chain)
        self._trackers[request.request_id] = tracker
        self._meter.prompt_seen(request.num_prompt_tokens, num_computed_tokens)
        if self._may_save(request):
            self.saves.follow(tracker)
        return tracker

    def _may_save(self, request: Request) -> bool:
        limit = self._config.priority_limit
        return self._can_save and not self._is_doubtful and (limit is None or request.priority <= limit)

    def _rehash(self, tracker: EmbeddedTracker) -> bool:
        """Bring the chain up to the request's tokens. False: there is nothing to ask for, or no key."""
        chunk_size, counts_tails = self._config.chunk_size, self._config.enable_chunk_statistics
        try:
            tracker.extend(self.saves.final_tokens(tracker.request), chunk_size)
            has_tail = counts_tails and tracker.find_tail(chunk_size) is not None
        except LMCacheError as error:
            self._serve_without(tracker, error)
            return False
        return bool(tracker.chain.digests) or has_tail or self._find_unfull(tracker) is not None

    def _find_unfull(self, tracker: EmbeddedTracker) -> UnfullChunk | None:
        """The prompt's last chunk if it is not whole, and is to be kept all the same."""
        if not self._config.save_unfull_chunk:
            return None
        try:
            return tracker.find_unfull(self._config.chunk_size, self._block_size)
        except LMCacheError as error:
            self._serve_without(tracker, error)
            return None

    def _serve_without(self, tracker: EmbeddedTracker, error: LMCacheError) -> None:
        self._once.warn(f"a request is served without cache: {error}")
        self.saves.unfollow(tracker.request_id)

    # Loads

    def update_state_after_alloc(self, request: Request, num_external_tokens: int) -> None:
        """vLLM took `num_external_tokens` of the offer: none, all, or less."""
        tracker = self._trackers.get(request.request_id)
        if tracker is None:
            return
        if num_external_tokens <= 0:
            self._lookups.release(tracker)
            return
        tracker.loaded_until = tracker.local_tokens + num_external_tokens
        self._new_loads.append(tracker)

    def build_connector_meta(self, output: SchedulerOutput) -> EmbeddedMetadata:
        self._step += 1
        self._look_for_reset()
        if len(self._unconfirmed):
            self._look_for_failures()
            self._unconfirmed.confirm(self._step)
        may_save = not len(self._unconfirmed) and (self._world_size == 1 or not self._new_loads)
        meta = EmbeddedMetadata(loads=[self._make_load(output, tracker) for tracker in self._new_loads])
        for tracker in self._new_loads:
            self._unconfirmed.add(tracker, self._step)
        self._new_loads = []
        if self._root and may_save:
            meta.stores = self.saves.plan(output, self._root)
        meta.released = self._lookups.take_released()
        self._lookups.back_off(output.total_num_scheduled_tokens)
        return meta

    def _make_load(self, output: SchedulerOutput, tracker: EmbeddedTracker) -> RetrieveJob:
        """The ranks let go of what they hold for it when they have loaded it."""
        state = output.kv_connector_block_state
        by_group = state.get_block_ids(tracker.request_id) if state is not None else None
        tracker.is_holding = False
        return make_load(
            tracker, self._root, by_group[0] if by_group else (), self._block_size, self._config.chunk_size
        )

    # What went wrong

    def _look_for_failures(self) -> bool:
        """Whether loads failed of which we did not know. vLLM has their blocks in its prefix cache still.

        They leave it, and no running request that may share them is saved any more. One request
        that failed alone recomputes its own blocks, so its saves are right again.
        """
        failed = self._unconfirmed.take_set_back()
        if not failed:
            return False
        is_recomputed = len(failed) == 1 and not failed[0].was_preempted
        self.saves.unfollow_all(but=failed[0].request_id if is_recomputed else None)
        for tracker in failed:
            self._forget_blocks(tracker.loading_blocks)
            # A request that was preempted may have loaded well: it is offered what is held again.
            tracker.has_failed = tracker.has_failed or not tracker.was_preempted
            tracker.num_known_chunks, tracker.is_unfull_known = 0, False
            tracker.end_load()
        return True

    def _forget_blocks(self, block_ids: Iterable[int]) -> None:
        if not self._forget_cached(set(block_ids)) and not self._is_doubtful:
            self._is_doubtful = True
            logger.warning("vLLM may keep KV of a load that failed: nothing is saved any more")
            self.saves.unfollow_all()

    # The end

    def request_finished(self, request: Request) -> dict[str, Any] | None:
        self._look_for_failures()
        tracker = self._trackers.pop(request.request_id, None)
        self.saves.unfollow(request.request_id)
        if tracker is not None:
            self._lookups.release(tracker)
            self._unconfirmed.forget(tracker)
        return None

    @property
    def num_new_loads(self) -> int:
        return len(self._new_loads)

    @property
    def num_trackers(self) -> int:
        return len(self._trackers)
