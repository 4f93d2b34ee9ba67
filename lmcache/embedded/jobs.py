"""What an engine asks its own rank to store and to retrieve, as values that travel between its processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """The chunks of a prompt, or some of them, of one tenant and one root.

    `tail_blocks`: blocks of the last of them where it is not a whole chunk; 0: all are whole.
    """

    root: bytes
    cache_salt: str
    digests: tuple[bytes, ...]
    tail_blocks: int = 0


@dataclass(frozen=True, slots=True)
class RetrievePart:
    """Blocks `first_block...` of a chunk go to `block_ids`."""

    digest: bytes
    first_block: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RetrieveJob:
    """`lookup_id`: the lookup that found these chunks and holds them until they are retrieved."""

    lookup_id: str
    root: bytes
    cache_salt: str
    parts: tuple[RetrievePart, ...]

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
    """`block_ids[i]` are the blocks of `digests[i]`; `stories` is empty where nobody wants events."""

    root: bytes
    cache_salt: str
    digests: tuple[bytes, ...]
    block_ids: tuple[tuple[int, ...], ...]
    stories: tuple[ChunkStory, ...] = ()
