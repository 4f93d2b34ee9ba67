"""What an engine asks its own rank to store and to retrieve, as values that travel between its processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptTail:
    """Tokens beyond the chunks that have a digest, with what else decides their KV. Never travels."""

    token_ids: tuple[int, ...]
    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The chunks of a prompt, or some of them, of one tenant and one root.

    `tail_blocks`: blocks of the last of them where it is not a whole chunk; 0: all are whole.
    `tail`: only of lookups, and only where somebody counts their chunks. `num_tokens`: only of lookups, all of the
    prompt, also what is beyond its chunks; 0: nothing is.
    """

    root: bytes
    cache_salt: str
    digests: tuple[bytes, ...]
    tail_blocks: int = 0
    tail: PromptTail | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RetrievePart:
    """Blocks `first_block...` of a chunk go to `block_ids`. `chunk_blocks`: how many it has; 0: as a whole one."""

    digest: bytes
    first_block: int
    block_ids: tuple[int, ...]
    chunk_blocks: int = 0


@dataclass(frozen=True, slots=True)
class RetrieveJob:
    """`lookup_id`: the lookup that found these chunks and holds them until they are retrieved; the request's id.

    `num_tokens`: tokens from the first block on that will be used; what follows them in the last block is computed.
    """

    lookup_id: str
    root: bytes
    cache_salt: str
    parts: tuple[RetrievePart, ...]
    num_tokens: int = 0

    @property
    def block_ids(self) -> set[int]:
        return {block_id for part in self.parts for block_id in part.block_ids}


@dataclass(frozen=True, slots=True)
class ChunkStory:
    """What an event about a stored chunk must tell beside its digest."""

    parent: bytes | None
    token_ids: tuple[int, ...]
    lora_name: str | None = None


@dataclass(frozen=True, slots=True)
class StoreJob:
    """`block_ids[i]` are the blocks of `digests[i]`, fewer in the last one where that is not a whole chunk.

    `stories` is empty where nobody wants events. `num_tokens`: of all these chunks together. `num_cached`: the first
    so many were in the engine's own prefix cache, the others were computed.
    """

    root: bytes
    cache_salt: str
    digests: tuple[bytes, ...]
    block_ids: tuple[tuple[int, ...], ...]
    stories: tuple[ChunkStory, ...] = ()
    request_id: str = ""
    num_tokens: int = 0
    num_cached: int = 0
