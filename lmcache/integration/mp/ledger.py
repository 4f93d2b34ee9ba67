"""What a worker may be writing to right now, so that a registration never frees a slot in use.

A registration tells the server "I write these slots and no others". A reserve whose answer
crosses a registration is therefore void: the server may have freed its slots.
"""

from __future__ import annotations

import threading


class WriteLedger:
    """Thread-safe. Slots are (slot, slot word) pairs."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._writing: set[tuple[int, int]] = set()
        self._generation = 0

    def generation(self) -> int:
        """To be read before a reserve is sent."""
        with self._mutex:
            return self._generation

    def begin(self, generation: int, slots: list[tuple[int, int]]) -> bool:
        """About to write these slots, reserved under `generation`. False: do not touch them."""
        with self._mutex:
            if generation != self._generation:
                return False
            self._writing.update(slots)
            return True

    def end(self, slots: list[tuple[int, int]]) -> None:
        with self._mutex:
            self._writing.difference_update(slots)

    def snapshot_for_registration(self) -> tuple[int, list[tuple[int, int]]]:
        """Number of the coming registration, and the slots it must name. Voids reserves not answered yet.

        The server, for its part, refuses a reserve made under another registration than its
        latest: one that arrives late would take slots nobody knows of.
        """
        with self._mutex:
            self._generation += 1
            return self._generation, sorted(self._writing)
