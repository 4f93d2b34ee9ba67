"""Leases on the rows of an index: counted, and each ends by itself. Not thread-safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lmcache.eviction.base import EvictionPolicy


@dataclass(slots=True)
class _Lease:
    count: int
    ends_s: float


class RowLeases:
    """A leased row is held in the eviction policy."""

    def __init__(self, policy: EvictionPolicy, ttl_s: float, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._ttl_s = ttl_s
        self._clock = clock
        self._leases: dict[int, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, row: int) -> bool:
        return row in self._leases

    def __iter__(self) -> Iterator[int]:
        return iter(self._leases)

    def add(self, row: int) -> None:
        """One more; those there are last longer with it."""
        ends_s = self._clock() + self._ttl_s
        lease = self._leases.get(row)
        if lease is None:
            self._leases[row] = _Lease(1, ends_s)
            self._policy.hold(row)
        else:
            lease.count, lease.ends_s = lease.count + 1, ends_s

    def release(self, row: int) -> None:
        """One less, if there is one."""
        lease = self._leases.get(row)
        if lease is None:
            return
        lease.count -= 1
        if not lease.count:
            self._end(row)

    def expire(self) -> int:
        """End those whose time is up; of how many rows."""
        now_s = self._clock()
        ended = [row for row, lease in self._leases.items() if lease.ends_s <= now_s]
        for row in ended:
            self._end(row)
        return len(ended)

    def forget(self, row: int) -> None:
        """The row is gone, and the policy knows."""
        self._leases.pop(row, None)

    def _end(self, row: int) -> None:
        del self._leases[row]
        self._policy.release(row)
