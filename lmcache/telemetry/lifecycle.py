"""How long chunks live in L1, and how soon they are wanted again: histograms over a sample of them.

A chunk is in the sample by its digest, so every event of it is seen or none. Knows no slot.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmcache.telemetry.metrics import MetricRegistry

_PREFIX = "lmcache_mp_"
_TRACKED_MAX = 100_000
_EVICT_REUSE_S_MAX = 300.0
_SAMPLE_BYTES = 4


@dataclass(slots=True)
class _Chunk:
    """Times by the clock; `accesses` is the count of all sampled accesses when this one was last used."""

    created_s: float = 0.0
    used_s: float = 0.0
    read_s: float | None = None
    accesses: int = 0
    removed_s: float | None = None


class ChunkLifecycle:
    """Thread-safe. `sample_rate` from 0 (nothing is looked at) to 1."""

    def __init__(self, metrics: MetricRegistry, sample_rate: float, clock: Callable[[], float]) -> None:
        self._limit = int(sample_rate * (1 << (8 * _SAMPLE_BYTES)))
        self._clock = clock
        self._mutex = threading.Lock()
        self._chunks: OrderedDict[tuple[bytes, str], _Chunk] = OrderedDict()
        self._num_accesses = 0
        histogram = metrics.histogram
        self._lifetime = histogram(_PREFIX + "l1_chunk_lifetime_seconds", "From stored to removed")
        self._idle = histogram(_PREFIX + "l1_chunk_idle_before_evict_seconds", "From last used to removed")
        self._reuse = histogram(_PREFIX + "l1_chunk_reuse_gap_seconds", "Between two uses while in L1")
        self._evict_reuse = histogram(
            _PREFIX + "l1_chunk_evict_reuse_gap_seconds", "From removed to stored or loaded again, 300 at most"
        )
        self._real_gap = histogram(
            _PREFIX + "real_reuse_gap_seconds",
            "From last used to the next read, whatever happened between",
            "cache_salt",
        )
        self._real_gap_objects = histogram(
            _PREFIX + "real_reuse_gap_objects", "Accesses to sampled chunks between two reads of one", "cache_salt"
        )

    def stored(self, digest: bytes, cache_salt: str) -> None:
        """It came to L1: from a worker or from L2."""
        if not self._is_sampled(digest):
            return
        with self._mutex:
            now_s = self._clock()
            chunk = self._chunk(digest, cache_salt)
            if chunk.removed_s is not None:
                self._evict_reuse.observe(min(now_s - chunk.removed_s, _EVICT_REUSE_S_MAX))
            chunk.created_s = chunk.used_s = now_s
            chunk.removed_s = None
            self._access(chunk)

    def read(self, digests: Iterable[bytes], cache_salt: str) -> None:
        """A lookup found these."""
        sampled = [digest for digest in digests if self._is_sampled(digest)]
        if not sampled:
            return
        with self._mutex:
            now_s = self._clock()
            for digest in sampled:
                chunk = self._chunk(digest, cache_salt)
                if chunk.used_s:
                    self._reuse.observe(now_s - chunk.used_s)
                    self._real_gap.observe(now_s - chunk.used_s, cache_salt)
                if chunk.read_s is not None:
                    self._real_gap_objects.observe(self._num_accesses - chunk.accesses, cache_salt)
                chunk.used_s = chunk.read_s = now_s
                self._access(chunk)

    def removed(self, digest: bytes, cache_salt: str) -> None:
        """It left L1."""
        if not self._is_sampled(digest):
            return
        with self._mutex:
            chunk = self._chunks.get((digest, cache_salt))
            if chunk is None or chunk.removed_s is not None or not chunk.created_s:
                return
            now_s = chunk.removed_s = self._clock()
            self._lifetime.observe(now_s - chunk.created_s)
            self._idle.observe(now_s - chunk.used_s)

    def _is_sampled(self, digest: bytes) -> bool:
        return int.from_bytes(digest[-_SAMPLE_BYTES:], "little") < self._limit

    def _chunk(self, digest: bytes, cache_salt: str) -> _Chunk:
        key = (digest, cache_salt)
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = _Chunk()
            if len(self._chunks) > _TRACKED_MAX:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        return chunk

    def _access(self, chunk: _Chunk) -> None:
        self._num_accesses += 1
        chunk.accesses = self._num_accesses
