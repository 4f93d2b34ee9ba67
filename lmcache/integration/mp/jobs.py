"""Transfers as values: what a scheduler asks of a worker, and what comes back. Plain and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PromisedChunk:
    """One chunk of a hit, for one rank: where it lies and what the slot must hold."""

    digest: bytes
    slot: int
    slot_word: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LoadChunk:
    """Blocks `first_block...` of a promised chunk go to `block_ids`. `ranks`: one place per column."""

    ranks: tuple[PromisedChunk, ...]
    first_block: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadJob:
    """All chunks of one request's hit. `pool_id` is the pool the places were promised in."""

    request_id: str
    pool_id: bytes
    chunks: tuple[LoadChunk, ...]
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class StoreJob:
    """Whole chunks of one request to store: `block_ids[i]` are the blocks of `digests[i]`.

    `num_cached`: the first so many were in the engine's own prefix cache, the others were computed.
    """

    job_id: int
    root: bytes
    cache_salt: str
    digests: tuple[bytes, ...]
    block_ids: tuple[tuple[int, ...], ...]
    num_cached: int = 0


class StoreOutcome(StrEnum):
    STORED = "stored"
    SKIPPED = "skipped"  # every chunk existed, or was being written by another
    NO_ROOM = "no_room"
    DROPPED = "dropped"  # too late, or too many bytes waiting
    FAILED = "failed"  # no server, or it refused


@dataclass(frozen=True, slots=True)
class StoreResult:
    """`stored` are the digests that this job committed."""

    job_id: int
    outcome: StoreOutcome
    stored: tuple[bytes, ...] = ()
    num_bytes: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    request_id: str
    is_ok: bool
    num_bytes: int = 0
    duration_s: float = 0.0
    error: str = ""
