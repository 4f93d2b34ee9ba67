"""What lookups hold until their chunks are loaded: one set of read locks per lookup id, for a while.

The mutex here guards the table; L1's is taken under it, never the other way round. Nothing is copied
and nobody is waited for under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmcache.l1.manager import L1Manager
from lmcache.l1.namespace import NamespaceKey, RankGroup
from lmcache.l1.values import LockBudget, Place
from lmcache.protocol.blobs import split_places


@dataclass(frozen=True, slots=True)
class _Held:
    places: list[Place]
    num_bytes: int
    ends_s: float


class LookupLocks:
    """Thread-safe. `bytes_max`: what all lookups together may hold; beyond that, less is found."""

    def __init__(self, l1: L1Manager, bytes_max: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self._l1 = l1
        self._bytes_max = bytes_max
        self.ttl_s = ttl_s
        self._clock = clock
        self._mutex = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._num_bytes = 0

    def lock(self, lookup_id: str, key: NamespaceKey, rank_group: RankGroup, digests: list[bytes]) -> int:
        """Lock the leading chunks that L1 has, instead of what this lookup held before; how many."""
        with self._mutex:
            old = self._held.pop(lookup_id, None)
            others_bytes = self._num_bytes - (old.num_bytes if old is not None else 0)
            _, packed = self._l1.lookup(key, [rank_group], digests, LockBudget(self._bytes_max - others_bytes))
            places = [Place(slot, word, length) for slot, word, _, length in split_places(packed)]
            num_bytes = sum(place.length for place in places)
            if places:
                self._held[lookup_id] = _Held(places, num_bytes, self._clock() + self.ttl_s)
            self._num_bytes = others_bytes + num_bytes
            if old is not None:
                self._l1.unlock(old.places)
        return len(places)

    def release(self, lookup_ids: Iterable[str]) -> int:
        """Nobody waits for what these lookups hold; how many of them held something."""
        with self._mutex:
            return sum(self._let_go(lookup_id) for lookup_id in lookup_ids)

    def release_all(self) -> int:
        with self._mutex:
            return sum(self._let_go(lookup_id) for lookup_id in list(self._held))

    def expire(self) -> int:
        """Release what was not asked for in time; how many lookups."""
        with self._mutex:
            now_s = self._clock()
            return sum(self._let_go(name) for name, held in list(self._held.items()) if held.ends_s <= now_s)

    def _let_go(self, lookup_id: str) -> bool:
        """Under the mutex."""
        held = self._held.pop(lookup_id, None)
        if held is None:
            return False
        self._num_bytes -= held.num_bytes
        self._l1.unlock(held.places)
        return True

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._held)
