"""Never evicts: when the pool is full, stores are refused until something is deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar


class Policy:
    name: ClassVar[str] = "noop"

    def __init__(self) -> None:
        self._slots: set[int] = set()

    def touch(self, slots: Iterable[int]) -> None:
        self._slots.update(slots)

    def remove(self, slot: int) -> None:
        self._slots.discard(slot)

    def victims(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return len(self._slots)
