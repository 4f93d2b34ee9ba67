"""What an eviction policy is: an order over slots. It knows no bytes, no limits, no clock.

An owner tells it what came, was used, is held and went, and asks who goes next. It decides
nothing else: whether and how much to evict is its owner's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol


class EvictionPolicy(Protocol):
    """Single owner, not thread-safe. Slots are small non-negative integers, unique while tracked."""

    name: ClassVar[str]
    is_per_tenant: ClassVar[bool]
    """Whether `victims` can be asked for one tenant's."""

    def add(self, slot: int, key_hash: int, tenant: str = "") -> None:
        """A slot was stored just now; IntegrityError if it is tracked already. `key_hash`: 64 bits
        by which a policy recognises a key that it has seen go."""

    def touch(self, slots: Iterable[int]) -> None:
        """These slots were used, the last of them most recently. Unknown ones are ignored; for a
        held one the use is noted, and counts when it is released."""

    def refresh(self, slots: Iterable[int]) -> None:
        """The same for a use that was counted already, or will be: these slots are recent again, but
        not used once more. One request asks twice and ends once; it is one use."""

    def hold(self, slot: int) -> None:
        """The slot is in use and no victim until it is released; unknown or held ones are ignored."""

    def release(self, slot: int) -> None:
        """A held slot may go again, and counts as used until just now; others are ignored."""

    def remove(self, slot: int, is_evicted: bool = False) -> None:
        """Stop tracking a slot, held or not; unknown ones are ignored. What was evicted, and not
        deleted by key, a policy may remember."""

    def victims(self, tenant: str | None = None) -> Iterator[int]:
        """Tracked slots that are not held, the one to evict first first; of one tenant if asked
        (IntegrityError unless `is_per_tenant`).

        The caller may stop anywhere, and may remove or hold the slot it was just given; after any
        other change it must ask anew. The first is found in constant time, amortised, and is the
        same until something changes. A policy may give chances away on the walk, as it would if
        what it offers were evicted: ask for no more than you mean to evict.
        """

    def __len__(self) -> int:
        """Tracked slots, held ones included."""
