"""Where keys live in memory: one namespace per (model, root, salt), one table per rank and group.

A hit counts only where every rank of a chunk is present, so lookups ask all tables of a
namespace. Tables map digest to slot and hold READY slots only; slots being written are
kept apart, so nobody can find one by key.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RankGroup = tuple[int, int]  # kv_rank, object group


@dataclass(frozen=True, slots=True)
class NamespaceKey:
    model_name: str
    root: bytes
    cache_salt: str


@dataclass(slots=True)
class Namespace:
    """One owner (the L1 manager). `num_objects` counts ready and writing slots."""

    key: NamespaceKey
    model_id: int
    root_id: int
    salt_id: int
    ready: dict[RankGroup, dict[bytes, int]] = field(default_factory=dict)
    writing: dict[tuple[RankGroup, bytes], int] = field(default_factory=dict)
    num_objects: int = 0

    def table(self, rank_group: RankGroup) -> dict[bytes, int]:
        return self.ready.setdefault(rank_group, {})

    def prefix_slots(self, rank_groups: list[RankGroup], digests: list[bytes]) -> list[int]:
        """Slots of the longest prefix of `digests` that every rank holds, chunk-major."""
        slots: list[int] = []
        if len(rank_groups) == 1:
            find = self.ready.get(rank_groups[0], {}).get
            for digest in digests:
                slot = find(digest)
                if slot is None:
                    break
                slots.append(slot)
            return slots
        finders = [self.ready.get(rank_group, {}).get for rank_group in rank_groups]
        for digest in digests:
            row = [slot for find in finders if (slot := find(digest)) is not None]
            if len(row) < len(finders):
                break
            slots.extend(row)
        return slots

    def held_slots(self, rank_groups: list[RankGroup], digests: list[bytes]) -> list[int]:
        """Ready slots of any of `digests`, chunk-major."""
        finders = [self.ready.get(rank_group, {}).get for rank_group in rank_groups]
        return [slot for digest in digests for find in finders if (slot := find(digest)) is not None]

    def siblings(self, digest: bytes) -> list[int]:
        """Ready slots of one chunk, over all ranks and groups."""
        return [slot for table in self.ready.values() if (slot := table.get(digest)) is not None]
