"""What an eviction policy is: an order over slots. It knows no bytes, no keys, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol


class EvictionPolicy(Protocol):
    """Single owner, not thread-safe. Slots are small integers, unique while tracked."""

    name: ClassVar[str]

    def touch(self, slots: Iterable[int]) -> None:
        """These slots were stored or used; the last of them counts as the most recent."""

    def remove(self, slot: int) -> None:
        """Stop tracking a slot; unknown slots are ignored."""

    def victims(self) -> Iterator[int]:
        """Tracked slots, the one to evict first first. The caller may stop, but must not
        change the policy while it iterates."""

    def __len__(self) -> int: ...
