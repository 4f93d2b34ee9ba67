"""What travels between lookup client and server: msgpack, checked while it is decoded."""

from __future__ import annotations

import msgspec


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Who are you? Also the question whether anybody is there."""


class Introduction(msgspec.Struct, tag=True, frozen=True):
    """`layout`: how this rank's pages lie, as JSON of `core.layout.KVLayout`."""

    layout: bytes


class Declined(msgspec.Struct, tag=True, frozen=True):
    """This rank caches nothing, and why."""

    text: str


class Lookup(msgspec.Struct, tag=True, frozen=True):
    """`wait_s`: how long the answer may take where tiers must be asked. `tail_blocks` as in `jobs.Prompt`."""

    lookup_id: str
    root: bytes
    cache_salt: str
    digests: bytes
    wait_s: float
    tail_blocks: int = 0


class Release(msgspec.Struct, tag=True, frozen=True):
    """Nobody loads what these lookups found. Those still under way are over too."""

    lookup_ids: tuple[str, ...]


class Released(msgspec.Struct, tag=True, frozen=True):
    """`num_lookups`: how many of them held something."""

    num_lookups: int


class Found(msgspec.Struct, tag=True, frozen=True):
    num_chunks: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The question could not be answered, and why."""

    text: str


Question = Hello | Lookup | Release
Answer = Introduction | Declined | Found | Released | Failed
