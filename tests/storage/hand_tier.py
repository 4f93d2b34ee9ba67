"""A tier without threads, whose answers a test gives by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.l2.base import AdapterContext, L2Adapter, Loaded
from lmcache.l2.memory.adapter import MockL2Adapter
from lmcache.l2.memory.config import MemoryConfig
from lmcache.storage.tier_route import TierRoute

T = TypeVar("T")


@dataclass
class HandTier:
    """What controllers and the scrubber see of a `Tier`. `lookups` and `loads` wait to be answered; a chore is run at
    once, unless `takes_chores` is False."""

    index: int = 0
    adapter: L2Adapter = field(default_factory=lambda: MockL2Adapter(MemoryConfig(1), AdapterContext("memory")))
    takes_chores: bool = True
    is_usable: bool = True
    route: TierRoute = field(default_factory=TierRoute)
    lookups: list[tuple[Sequence[ObjectKey], Callable[[list[bool]], None]]] = field(default_factory=list)
    loads: list[tuple[ObjectKey, Callable[[Loaded | None], None]]] = field(default_factory=list)
    released: list[ObjectKey] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"hand-{self.index}"

    def submit_lookup(
        self, keys: Sequence[ObjectKey], on_done: Callable[[list[bool]], None], deadline_s: float
    ) -> None:
        self.lookups.append((keys, on_done))

    def submit_load(
        self,
        key: ObjectKey,
        target: memoryview,
        on_done: Callable[[Loaded | None], None],
        deadline_s: float | None = None,
    ) -> None:
        self.loads.append((key, on_done))

    def release(self, keys: Sequence[ObjectKey]) -> None:
        self.released += keys

    def submit_chore(self, name: str, work: Callable[[], None]) -> bool:
        if self.takes_chores:
            work()
        return self.takes_chores

    def call(self, work: Callable[[L2Adapter], T]) -> T:
        return work(self.adapter)
