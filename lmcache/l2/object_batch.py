"""Objects found on a backend, in columns: how an index takes up a million of them at once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from lmcache.core.keys import ObjectKey


@dataclass(frozen=True, slots=True)
class Space:
    """What keys of one digest table have in common."""

    model_name: str
    kv_rank: int
    object_group_id: int
    cache_salt: str

    def key(self, digest: bytes) -> ObjectKey:
        return ObjectKey(digest, self.model_name, self.kv_rank, self.object_group_id, self.cache_salt)


class ObjectBatch:
    """Objects found on a backend, in columns: what a million of them need. No two may have the same key."""

    def __init__(self) -> None:
        self.spaces: list[Space] = []
        self.space_ids = array("i")
        self.digests = bytearray()
        self.sizes = array("Q")
        self.stamps = array("q")
        self._ids: dict[Space, int] = {}
        self._last: tuple[Space | None, int] = (None, 0)

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, space: Space, digest: bytes, size: int, stamp: int) -> None:
        """`stamp` orders the objects, the one used longest ago first; equal ones stay as they came."""
        last, space_id = self._last
        if space is not last:  # hashing a space costs more than all the rest
            space_id = self._ids.setdefault(space, len(self.spaces))
            if space_id == len(self.spaces):
                self.spaces.append(space)
            self._last = (space, space_id)
        self.space_ids.append(space_id)
        self.digests += digest
        self.sizes.append(size)
        self.stamps.append(stamp)
