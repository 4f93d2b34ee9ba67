"""What the benchmarks of L2 adapters share: objects in memory, a tier that stores and loads them, the comparison."""

from __future__ import annotations

import os
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.common import Row, alternating_pairs, median
from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import MIB
from lmcache.l2.base import L2Adapter, Source, StoreStatus
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.tier import Tier
from lmcache.telemetry.metrics import Counter, MetricRegistry

RATIO_MIN = 0.8


class TierRuns:
    """An adapter in its tier, and as many objects of one size as keys, next to one another in `pool`."""

    def __init__(self, adapter: L2Adapter, keys: Sequence[ObjectKey], pool: memoryview) -> None:
        self.adapter = adapter
        self.keys = keys
        self._pool = pool
        self.object_bytes = len(pool) // len(keys)
        metrics = StorageMetrics(MetricRegistry(), Counter("read_failure", ""), Counter("allocation_failure", ""))
        self.tier = Tier(0, adapter, metrics)
        self.tier.start()
        if not self.tier.wait_until_open(30):
            raise RuntimeError(f"the tier did not open: {self.tier.breaker.last_error}")

    def slot(self, number: int) -> memoryview:
        return self._pool[number * self.object_bytes : (number + 1) * self.object_bytes]

    def store(self) -> None:
        answers: queue.SimpleQueue[StoreStatus | None] = queue.SimpleQueue()
        for number, key in enumerate(self.keys):
            self.tier.submit_store(key, Source(self.slot(number)), answers.put)
        if any(answers.get() is not StoreStatus.STORED for _ in self.keys):
            raise RuntimeError("an object was not stored")

    def load(self) -> None:
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        for number, key in enumerate(self.keys):
            self.tier.submit_load(key, self.slot(number), answers.put)
        if any(answers.get() is None for _ in self.keys):
            raise RuntimeError("an object was not loaded")

    def delete(self) -> None:
        self.adapter.delete(self.keys)

    def compared(self, what: str, pairs: Sequence[tuple[float, float]], bare_name: str) -> list[Row]:
        """`pairs`: seconds of ours and of the bare thing, for all objects."""
        ratio = median([bare_s / ours_s for ours_s, bare_s in pairs])
        gigabytes = len(self._pool) / 1e9
        return [
            Row(f"{what}, checksum included", f"{gigabytes / median([ours_s for ours_s, _ in pairs]):.2f} GB/s"),
            Row(bare_name, f"{gigabytes / median([bare_s for _, bare_s in pairs]):.2f} GB/s"),
            Row(f"{what} as a part of that", f"{ratio:.2f}", f">= {RATIO_MIN}", ratio >= RATIO_MIN),
        ]

    def close(self) -> None:
        self.tier.close(10)


class ClientRuns(TierRuns, ABC):
    """A tier on a server, and a bare client of that server with other keys and threads of its own."""

    def __init__(
        self, adapter: L2Adapter, num_objects: int, object_bytes: int, num_writers: int, num_readers: int
    ) -> None:
        pool = memoryview(bytearray(os.urandom(MIB) * (num_objects * object_bytes // MIB)))
        super().__init__(adapter, plain_keys(num_objects), pool)
        self._writers = ThreadPoolExecutor(num_writers)
        self._readers = ThreadPoolExecutor(num_readers)

    @abstractmethod
    def put(self, name: str, data: memoryview) -> object: ...

    @abstractmethod
    def get(self, name: str) -> object: ...

    @abstractmethod
    def delete_bare(self, names: Sequence[str]) -> None: ...

    @property
    def _names(self) -> list[str]:
        return [f"bare-{number}" for number in range(len(self.keys))]

    def bare_store(self) -> None:
        slots = [self.slot(number) for number in range(len(self.keys))]
        list(self._writers.map(self.put, self._names, slots))

    def bare_load(self) -> None:
        list(self._readers.map(self.get, self._names))

    def delete(self) -> None:
        super().delete()
        self.delete_bare(self._names)

    def close(self) -> None:
        self._writers.shutdown()
        self._readers.shutdown()
        super().close()


def client_rows(start: Callable[[], ClientRuns], num_pairs: int, client_name: str) -> list[Row]:
    """Of stores, then of loads of what was stored last."""
    runs = start()
    try:
        stores = alternating_pairs(runs.store, runs.bare_store, runs.delete, num_pairs)
        loads = alternating_pairs(runs.load, runs.bare_load, lambda: None, num_pairs)
    finally:
        runs.close()
    return [*runs.compared("load", loads, client_name), *runs.compared("store", stores, client_name)]


def plain_keys(count: int) -> list[ObjectKey]:
    return [ObjectKey(bytes([number]) * 32, "org/model", 0x01000100) for number in range(count)]
