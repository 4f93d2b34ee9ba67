"""Which chunks an engine loaded that only resemble what it would have computed, from a tier behind a lossy serde.

They may stay in its own prefix cache for long, and nobody may store them from there. Knows no tier.
"""

from __future__ import annotations

import threading


class LossyChunks:
    """Thread-safe. The last `num_chunks_max` by digest: at least as many as the engine has pages for."""

    def __init__(self, num_chunks_max: int) -> None:
        self._num_chunks_max = num_chunks_max
        self._mutex = threading.Lock()
        self._digests: dict[bytes, None] = {}

    def add(self, digest: bytes) -> None:
        """For good: pages of an exact one may come beside those of this one, and nobody sees which of them serve."""
        with self._mutex:
            self._digests.pop(digest, None)
            self._digests[digest] = None
            if len(self._digests) > self._num_chunks_max:
                del self._digests[next(iter(self._digests))]

    def exact(self, digests: tuple[bytes, ...], num_cached: int) -> list[int]:
        """Which of these chunks may be stored, by position, where the engine had the first `num_cached` in its own
        prefix cache and computed the others."""
        return [at for at, digest in enumerate(digests) if at >= num_cached or digest not in self._digests]
