"""Counts records one after another. Owned by one thread; its figures are whole and may be read by any."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lmcache.core.hashing import ChunkHashAlgorithm, tokens_to_bytes
from lmcache.embedded.jobs import Prompt
from lmcache.embedded.statistics.base import CountingStrategy, Record


@dataclass(frozen=True, slots=True)
class Counts:
    num_requests: int = 0
    num_chunks: int = 0
    num_unique: int = 0

    def plus(self, num_chunks: int, num_unique: int) -> Counts:
        return Counts(self.num_requests + 1, self.num_chunks + num_chunks, self.num_unique + num_unique)

    def figures(self) -> dict[str, object]:
        num_duplicate = self.num_chunks - self.num_unique
        return {
            "total_requests": self.num_requests,
            "total_chunks": self.num_chunks,
            "unique_chunks": self.num_unique,
            "duplicate_chunks": num_duplicate,
            "reuse_rate": num_duplicate / self.num_chunks if self.num_chunks else 0.0,
        }


class ChunkCounter:
    def __init__(self, strategy: CountingStrategy, algorithm: ChunkHashAlgorithm) -> None:
        self._strategy = strategy
        self._algorithm = algorithm
        self.counts = Counts()

    def count(self, record: Record) -> None:
        prompt = hash_tail(record.prompt, self._algorithm)
        digests = prompt.digests
        num_unique = self._strategy.count(record.lookup_id, record.at_s, prompt.cache_salt, digests)
        self.counts = self.counts.plus(len(digests), num_unique)

    def clear(self) -> None:
        self._strategy.clear()
        self.counts = Counts()


def hash_tail(prompt: Prompt, algorithm: ChunkHashAlgorithm) -> Prompt:
    """The same prompt with its tail as one more chunk of the chain. Raises TokenRangeError."""
    if prompt.tail is None:
        return prompt
    prefix = prompt.digests[-1] if prompt.digests else prompt.root
    digest = algorithm.next_digest(prefix, tokens_to_bytes(prompt.tail.token_ids), prompt.tail.extra)
    return dataclasses.replace(prompt, digests=(*prompt.digests, digest), tail=None)
