"""One prefetch: what is asked for, how far it came, and what it holds. Only the controller's thread changes it.

Keys are chunk-major: all ranks of the first chunk, then of the second, as in a lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lmcache.core.keys import ObjectKey
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.values import Place
from lmcache.storage.pool_access import OpenPool

# An object of one pool.
LoadKey = tuple[int, NamespaceKey, RankGroup, bytes]

_FIRST_WINDOW_CHUNKS = 4
_WINDOW_CHUNKS_MAX = 64


@dataclass(frozen=True, slots=True)
class PrefetchRequest:
    """Chunks `first_chunk...` of a prompt are wanted in L1, as far as they are held without a gap.

    `lengths`: bytes of an object, per rank group; `tail_lengths`: of the last chunk's, where it is not a whole one.
    `retains`: what is loaded stays. After `deadline_s` nobody waits any more; `keeps_late`: what arrives then stays
    for others. Without `counts_l1`, a chunk is found only where a tier holds it; its bytes are not read again if L1
    has them all the same.
    """

    pool: OpenPool
    namespace: NamespaceKey
    rank_groups: Sequence[RankGroup]
    lengths: Sequence[int]
    digests: Sequence[bytes]
    first_chunk: int
    deadline_s: float
    retains: bool
    keeps_late: bool = True
    counts_l1: bool = True
    tail_lengths: Sequence[int] = ()

    def length(self, chunk: int, rank: int) -> int:
        is_tail = bool(self.tail_lengths) and chunk == len(self.digests) - 1
        return self.tail_lengths[rank] if is_tail else self.lengths[rank]

    def key(self, chunk: int, rank: int) -> ObjectKey:
        kv_rank, group_id = self.rank_groups[rank]
        return ObjectKey(self.digests[chunk], self.namespace.model_name, kv_rank, group_id, self.namespace.cache_salt)

    def serves(self, other: PrefetchRequest) -> bool:
        """Whether a job for this request brings all that another one is about."""
        return (
            self.pool is other.pool
            and self.namespace == other.namespace
            and self.first_chunk <= other.first_chunk
            and self.counts_l1 == other.counts_l1
            and tuple(self.tail_lengths) == tuple(other.tail_lengths)
            and self.digests == other.digests
        )

    def load_key(self, chunk: int, rank: int) -> LoadKey:
        return id(self.pool), self.namespace, self.rank_groups[rank], self.digests[chunk]


class PrefetchPhase(StrEnum):
    QUEUED = "queued"
    LOOKUP = "lookup"
    LOAD = "load"
    DONE = "done"


# Told once, in the controller's thread: whether the job came to its end (or was cancelled).
OnDone = Callable[[bool], None]


@dataclass(slots=True)
class PrefetchJob:
    """`asked`: the (chunk, rank) of each key asked for in this window, `asked_of`: the adapters asked.
    `locked`: places in L1 that the job protects until its reader has them, `held_bytes` of which it loaded
    itself. `stop_chunk`: the first chunk known not to come."""

    key: Hashable
    request: PrefetchRequest
    on_done: OnDone | None
    phase: PrefetchPhase = PrefetchPhase.QUEUED
    window: tuple[int, int] = (0, 0)
    asked: list[tuple[int, int]] = field(default_factory=list)
    asked_of: set[int] = field(default_factory=set)
    answers: dict[int, Sequence[bool]] = field(default_factory=dict)
    num_loading: int = 0
    num_loaded: int = 0
    locked: dict[tuple[int, int], Place] = field(default_factory=dict)
    stop_chunk: int = 0
    held_bytes: int = 0
    ended_s: float = 0.0
    is_detached: bool = False
    deadline_s: float = 0.0
    progress_s: float = 0.0

    def __post_init__(self) -> None:
        self.stop_chunk = len(self.request.digests)
        self.deadline_s = self.request.deadline_s

    def next_window(self) -> tuple[int, int]:
        """The chunks to ask for next: few at first, since most prompts that miss miss at once."""
        if self.window == (0, 0):
            first, size = self.request.first_chunk, _FIRST_WINDOW_CHUNKS
        else:
            first, size = self.window[1], min(2 * (self.window[1] - self.window[0]), _WINDOW_CHUNKS_MAX)
        return first, min(first + size, len(self.request.digests))

    def asked_keys(self) -> list[ObjectKey]:
        return [self.request.key(chunk, rank) for chunk, rank in self.asked]

    @property
    def found_chunks(self) -> int:
        """Leading chunks of the prompt that are in L1 now, as far as this job knows."""
        num_ranks = len(self.request.rank_groups)
        chunk = self.request.first_chunk
        while all((chunk, rank) in self.locked for rank in range(num_ranks)) and chunk < self.stop_chunk:
            chunk += 1
        return chunk

    def lock_held(self, chunk: int, rank: int) -> bool:
        """Lock an object for this job if L1 has it."""
        request = self.request
        held = request.pool.l1.lock_key(
            request.namespace, request.rank_groups[rank], request.digests[chunk], request.retains
        )
        if held is not None:
            self.locked[chunk, rank] = held
        return held is not None

    def stop_before(self, chunk: int) -> None:
        """This chunk will not come, so what follows is of no use."""
        self.stop_chunk = min(self.stop_chunk, chunk)

    def take_locked(self) -> list[Place]:
        """The places to unlock, in the order of a lookup."""
        places = [self.locked[position] for position in sorted(self.locked)]
        self.locked.clear()
        return places
