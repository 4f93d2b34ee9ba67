"""What the scheduler half asks the ranks: which leading chunks of a request they have, and to let go of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.extra import read_extra
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup.base import LookupClient
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.integration.vllm.embedded_tracker import EmbeddedTracker, UnfullChunk

# What a lookup found, most ranks hold for much longer than this. Where it is gone all the same, it is recomputed.
_ANSWER_REUSE_S = 1.0
# New requests wait behind it.
_BACKOFF_MAX_S = 0.1


class EmbeddedLookups:
    """Belongs to the scheduler's thread. `config` is read anew wherever a setting may change."""

    def __init__(
        self,
        config: LMCacheEngineConfig,
        client: LookupClient,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        meter: EmbeddedMetrics | None = None,
    ) -> None:
        self._meter = meter or EmbeddedMetrics.unshown()
        self._config = config
        self._client = client
        self._clock = clock
        self._sleep = sleep
        # In the order in which they came.
        self._released: dict[str, None] = {}
        self._has_asked_in_vain = False

    def ask(self, tracker: EmbeddedTracker, root: bytes, unfull: UnfullChunk | None, num_local_tokens: int) -> bool:
        """Ask the ranks, unless they were asked the same a moment ago and most likely still have what they found.
        False: the answer is not there yet. `unfull`: a last chunk that is asked for although it is not whole."""
        if tracker.is_holding and not tracker.is_pending and self._is_fresh(tracker, unfull):
            return True
        prompt, num_tokens = self._prompt(tracker, root, unfull)
        if not tracker.is_pending:
            tracker.asking_since_s = self._clock()
        self._released.pop(tracker.request_id, None)  # what is found now is held instead of what was found before
        found = self._client.lookup(tracker.request_id, prompt, num_tokens > num_local_tokens)
        tracker.is_holding, tracker.is_pending = True, found is None
        if found is None:
            self._has_asked_in_vain = True
            return False
        self._note_found(tracker, prompt, found, num_tokens)
        return True

    def _is_fresh(self, tracker: EmbeddedTracker, unfull: UnfullChunk | None) -> bool:
        asked, tail_blocks = tracker.asked, unfull.num_blocks if unfull is not None else 0
        num_asked = len(tracker.chain.digests) + (unfull is not None)
        is_same = asked is not None and (len(asked.digests), asked.tail_blocks) == (num_asked, tail_blocks)
        return is_same and self._clock() - tracker.asked_at_s < _ANSWER_REUSE_S

    def _prompt(self, tracker: EmbeddedTracker, root: bytes, unfull: UnfullChunk | None) -> tuple[Prompt, int]:
        """What is asked for, and how many tokens that is."""
        digests, chunk_size = tuple(tracker.chain.digests), self._config.chunk_size
        num_tokens = len(digests) * chunk_size
        num_prompt_tokens = max(num_tokens, tracker.request.num_prompt_tokens)
        if unfull is not None:
            digests, num_tokens = (*digests, unfull.digest), num_tokens + unfull.num_tokens
            return Prompt(root, tracker.cache_salt, digests, unfull.num_blocks, None, num_prompt_tokens), num_tokens
        tail = tracker.find_tail(chunk_size) if self._config.enable_chunk_statistics else None
        return Prompt(root, tracker.cache_salt, digests, 0, tail, num_prompt_tokens), num_tokens

    def _note_found(self, tracker: EmbeddedTracker, prompt: Prompt, num_found: int, num_tokens: int) -> None:
        """`num_tokens`: of the whole prompt that was asked for."""
        is_all, chunk_size = num_found == len(prompt.digests), self._config.chunk_size
        tracker.asked, tracker.asked_at_s = prompt, self._clock()
        tracker.num_found_tokens = num_tokens if is_all else num_found * chunk_size
        self._meter.looked_up(num_tokens, tracker.num_found_tokens, self._clock() - tracker.asking_since_s)
        tracker.num_known_chunks = max(tracker.num_known_chunks, tracker.num_found_tokens // chunk_size)
        tracker.is_unfull_known = tracker.is_unfull_known or (is_all and prompt.tail_blocks > 0)

    def release(self, tracker: EmbeddedTracker) -> None:
        """The ranks hold nothing for this request any more, from the next step on."""
        if tracker.is_pending:
            tracker.is_pending = False
            self._client.forget(tracker.request_id)
        if tracker.is_holding:
            tracker.is_holding = False
            self._released[tracker.request_id] = None

    def take_released(self) -> list[str]:
        if not self._released:
            return []
        released, self._released = self._released, {}
        return list(released)

    def back_off(self, num_scheduled_tokens: int) -> None:
        """vLLM asks again in its next step, and one without tokens takes no time: leave the ranks some."""
        if self._has_asked_in_vain and not num_scheduled_tokens:
            backoff_s = read_extra(self._config.extra_config).lookup_backoff_time
            self._sleep(min(backoff_s, _BACKOFF_MAX_S))
        self._has_asked_in_vain = False
