"""Records on their way to the thread that counts. Putting never waits: what finds no room is counted and dropped."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field

from lmcache.embedded.statistics.base import Record

# Whatever the capacity in lookups: so many hashes may wait, of some 70 bytes each.
_WAITING_CHUNKS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Clear:
    """Asks the thread that counts to forget; `done` is set when it has."""

    done: threading.Event = field(default_factory=threading.Event)


class End:
    """Asks the thread that counts to end."""


Entry = Record | Clear | End


class RecordQueue:
    """One putter at a time, and one taker. Orders to the taker always find room, and keep their place."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        # Each of these pairs grows on both sides, so that neither side writes what the other does.
        self._num_put = self._num_taken = 0
        self._chunks_put = self._chunks_taken = 0
        self._size_max = 0
        self._num_dropped = 0

    @property
    def size(self) -> int:
        return self._num_put - self._num_taken

    def put(self, record: Record) -> bool:
        """False: there is no room."""
        num_chunks = len(record.prompt.digests)
        waiting_chunks = self._chunks_put - self._chunks_taken
        if self.size >= self._capacity or (waiting_chunks and waiting_chunks + num_chunks > _WAITING_CHUNKS_MAX):
            self._num_dropped += 1
            return False
        self._num_put += 1
        self._chunks_put += num_chunks
        self._size_max = max(self._size_max, self.size)
        self._entries.put(record)
        return True

    def order(self, order: Clear | End) -> None:
        self._entries.put(order)

    def take(self) -> Entry:
        """Waits for the next one. A record waits until `finish` is called for it."""
        return self._entries.get()

    def finish(self, record: Record) -> None:
        self._num_taken += 1
        self._chunks_taken += len(record.prompt.digests)

    def forget_marks(self) -> None:
        """The highest size and the number dropped begin anew. By the putter."""
        self._size_max = self._num_dropped = 0

    def figures(self) -> dict[str, object]:
        size = self.size
        return {
            "capacity": self._capacity,
            "current_size": size,
            "max_size_reached": self._size_max,
            "full_blocks": self._num_dropped,
            "utilization": size / self._capacity,
        }
