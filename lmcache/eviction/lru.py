"""Least recently used. With prompts touched from tail to head, leaves go before their roots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import ClassVar


class Policy:
    name: ClassVar[str] = "LRU"

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def touch(self, slots: Iterable[int]) -> None:
        order = self._order
        for slot in slots:
            order[slot] = None
            order.move_to_end(slot)

    def remove(self, slot: int) -> None:
        self._order.pop(slot, None)

    def victims(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)
