"""What the scheduler half of the in-process mode knows of one request, and which loads are not confirmed.

vLLM does not tell this connector how a load went. It shows: a request whose load failed is set back to
the first token that is missing, which is then less than what was to be loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmcache.core.hashing import PrefixChain
from lmcache.embedded.jobs import Prompt, PromptTail
from lmcache.integration.vllm.chunk_extras import ChunkExtras

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class UnfullChunk:
    """The last chunk of a prompt, where it is not whole. What follows its tokens in its last block is of no meaning."""

    digest: bytes
    num_tokens: int
    num_blocks: int


@dataclass(slots=True)
class EmbeddedTracker:
    """Attributes:
    local_tokens: tokens vLLM had by itself when it last asked.
    tail, unfull: what `find_tail` and `find_unfull` found, for good.
    asked, num_found_tokens, asked_at_s: of the last lookup. asking_since_s: when the first question of it went out.
    is_holding: the ranks may hold what that lookup found. is_pending: they have not answered yet.
    num_known_chunks: leading whole chunks that need no store: found, or handed to a store.
    is_unfull_known: the same of the one that is not whole.
    loaded_until: tokens that are there once the load under way has ended; 0: there is none.
    loading_blocks: vLLM's blocks from the first loaded one on.
    load_step, num_preemptions: when that load was handed out, and how often the request was preempted before.
    has_failed: a load failed once; nothing is offered to this request again.
    """

    request: Request
    cache_salt: str
    extras: ChunkExtras
    chain: PrefixChain
    local_tokens: int = 0
    tail: PromptTail | None = None
    unfull: UnfullChunk | None = None
    asked: Prompt | None = None
    num_found_tokens: int = 0
    asked_at_s: float = -math.inf
    asking_since_s: float = 0.0
    is_holding: bool = False
    is_pending: bool = False
    num_known_chunks: int = 0
    is_unfull_known: bool = False
    loaded_until: int = 0
    loading_blocks: tuple[int, ...] = ()
    load_step: int = 0
    num_preemptions: int = 0
    has_failed: bool = False

    @property
    def request_id(self) -> str:
        return str(self.request.request_id)

    def extend(self, num_tokens: int, chunk_size: int) -> None:
        """Know the digests of the whole chunks among so many tokens. Raises LMCacheError."""
        if num_tokens // chunk_size > len(self.chain.digests):
            self.extras.extend(num_tokens, chunk_size)
            self.chain.extend(self.request.all_token_ids, self.extras.by_chunk, num_tokens)

    def find_tail(self, chunk_size: int) -> PromptTail | None:
        """What of the prompt is beyond its whole chunks; None where that is nothing, or has become whole since.
        Raises LMCacheError."""
        end = self.request.num_prompt_tokens
        start = end - end % chunk_size
        if start == end or len(self.chain.digests) != start // chunk_size:
            return None
        if self.tail is None:
            self.tail = PromptTail(tuple(self.request.all_token_ids[start:end]), self.extras.tail(start, end))
        return self.tail

    def find_unfull(self, chunk_size: int, block_size: int) -> UnfullChunk | None:
        """The same as a chunk of its own. Raises LMCacheError."""
        tail = self.find_tail(chunk_size)
        if tail is not None and self.unfull is None:
            num_tokens, digest = len(tail.token_ids), self.chain.tail_digest(tail.token_ids, tail.extra)
            self.unfull = UnfullChunk(digest, num_tokens, -(-num_tokens // block_size))
        return self.unfull if tail is not None else None

    @property
    def was_set_back(self) -> bool:
        """What was to be loaded is not there: the load failed, or the request was preempted before we looked."""
        return bool(self.loaded_until > self.request.num_computed_tokens)

    @property
    def was_preempted(self) -> bool:
        return bool(self.request.num_preemptions > self.num_preemptions)

    def end_load(self) -> None:
        self.loaded_until, self.loading_blocks = 0, ()


class UnconfirmedLoads:
    """Loads handed out, until vLLM must have taken the outcome of their step into account.

    `num_steps`: how many steps vLLM may plan, that of the load included, before it has.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._trackers: dict[str, EmbeddedTracker] = {}

    def add(self, tracker: EmbeddedTracker, step: int) -> None:
        tracker.load_step = step
        tracker.num_preemptions = tracker.request.num_preemptions
        self._trackers[tracker.request_id] = tracker

    def take_set_back(self) -> list[EmbeddedTracker]:
        """Those whose load did not come to anything, as far as vLLM knows by now."""
        found = [tracker for tracker in self._trackers.values() if tracker.was_set_back]
        for tracker in found:
            del self._trackers[tracker.request_id]
        return found

    def confirm(self, step: int) -> None:
        """Loads of so many steps before `step` have ended well, unless they were taken out."""
        for tracker in [each for each in self._trackers.values() if step - each.load_step >= self._num_steps]:
            self.forget(tracker)

    def forget(self, tracker: EmbeddedTracker) -> None:
        self._trackers.pop(tracker.request_id, None)
        tracker.end_load()

    def clear(self) -> None:
        """vLLM dropped all KV: what became of these loads matters no more."""
        for tracker in list(self._trackers.values()):
            self.forget(tracker)

    def __len__(self) -> int:
        return len(self._trackers)
