"""What the scheduler half knows of one request, from its arrival to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lmcache.core.hashing import PrefixChain
from lmcache.integration.mp.lookups import NOTHING, Promise
from lmcache.integration.vllm.chunk_extras import ChunkExtras

# A promise older than this is asked for again: it also tells the server that we still wait.
_PROMISE_REUSE_S = 1.0


class LoadState(StrEnum):
    """NONE -> PENDING (blocks are allocated, ranks copy) -> NONE again."""

    NONE = "none"
    PENDING = "pending"


@dataclass(slots=True)
class RequestTracker:
    """Attributes:
    root: the root `chain` starts from; another root means that all digests are void.
    local_tokens: tokens vLLM had by itself when it last asked.
    num_asked_chunks: leading chunks the current promise was asked for.
    session_boot_id: the server that knows of this request, whatever it holds for it now; 0: none.
    num_known_chunks: leading chunks that need no store: held at lookup, or handed to a store.
    has_failed: a load failed once; nothing is promised to this request again.
    loading_blocks: vLLM's blocks from the first loaded one on.
    is_finished: vLLM has ended it, and only a load under way keeps it here.
    """

    request_id: str
    cache_salt: str
    extras: ChunkExtras
    root: bytes = b""
    chain: PrefixChain | None = None
    promise: Promise = NOTHING
    promised_at_s: float = 0.0
    session_boot_id: int = 0
    num_asked_chunks: int = 0
    local_tokens: int = 0
    loaded_tokens: int = 0
    num_known_chunks: int = 0
    load_state: LoadState = LoadState.NONE
    has_failed: bool = False
    is_finished: bool = False
    num_ranks_loaded: int = 0
    loading_blocks: tuple[int, ...] = ()

    @property
    def digests(self) -> Sequence[bytes]:
        return self.chain.digests if self.chain is not None else ()

    def take_promise(self, promise: Promise, now_s: float) -> None:
        self.promise, self.promised_at_s = promise, now_s
        self.num_asked_chunks = len(self.digests)
        self.num_known_chunks = max(self.num_known_chunks, len(promise.chunks))

    def is_promise_fresh(self, boot_id: int, now_s: float) -> bool:
        """Whether that server was asked for all chunks a moment ago."""
        is_whole = self.promise.boot_id == boot_id and self.num_asked_chunks == len(self.digests)
        return is_whole and now_s - self.promised_at_s < _PROMISE_REUSE_S

    def token_stats(self, chunk_size: int, num_prompt_tokens: int) -> dict[str, int]:
        """Under the names that users of vLLM know."""
        return {
            "num_vllm_cached_tokens": self.local_tokens,
            "num_lmcache_cached_tokens": min(self.num_known_chunks * chunk_size, num_prompt_tokens),
            "num_lmcache_extra_cached_tokens": self.loaded_tokens,
        }
