"""Values of L1's calls: places, statuses, results, budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(NamedTuple):
    """A slot and the slot word it had when it was promised; `length` in bytes where it matters."""

    slot: int
    slot_word: int
    length: int = 0


@dataclass(slots=True)
class LockBudget:
    """Bytes that may still be locked; places that are held already cost nothing. `is_spent`: set by a lookup
    that found more than the budget paid for."""

    num_bytes: int
    is_held: Callable[[Place], bool] = lambda place: False
    is_spent: bool = False


@dataclass(slots=True)
class ReserveResult:
    """One status per asked digest; slots of the reserved ones, in the same order."""

    statuses: bytearray = field(default_factory=bytearray)
    slots: list[int] = field(default_factory=list)
    num_evicted: int = 0
