"""Lookups to be counted, and recorders over strategies that tests can hold back or break."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmcache.core.hashing import Blake3Algorithm, chunk_digests
from lmcache.core.layout import KVLayout
from lmcache.embedded.jobs import Prompt, PromptTail
from lmcache.embedded.statistics.base import CountingStrategy
from lmcache.embedded.statistics.limits import AutoExitLimits
from lmcache.embedded.statistics.memory_bloom_filter import MemoryBloomFilter
from lmcache.embedded.statistics.recorder import ChunkStatisticsRecorder
from lmcache.testing.waiting import wait_until

CHUNK_SIZE = 256
ALGORITHM = Blake3Algorithm()
ROOT = ALGORITHM.none_hash()
_PATIENCE_S = 20.0


def prompt_of(num_tokens: int, salt: str = "", first_token: int = 0, extra: bytes = b"") -> Prompt:
    """Tokens `first_token...`: prompts of one first token begin alike."""
    tokens = range(first_token, first_token + num_tokens)
    digests = chunk_digests(ALGORITHM, ROOT, tokens, CHUNK_SIZE)
    tail = tuple(tokens[len(digests) * CHUNK_SIZE :])
    return Prompt(ROOT, salt, tuple(digests), tail=PromptTail(tail, extra) if tail else None)


class HeldStrategy:
    """Counts every chunk as new. Stands still while it is held, and raises what it is told to."""

    name = "held"

    def __init__(self, is_lasting: bool = False) -> None:
        self.is_lasting = is_lasting
        self.may_count = threading.Event()
        self.may_count.set()
        self.error: Exception | None = None
        self.counted: list[str] = []
        self.is_closed = False

    def count(self, lookup_id: str, at_s: float, cache_salt: str, digests: tuple[bytes, ...]) -> int:
        assert self.may_count.wait(_PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.counted.append(lookup_id)
        return len(digests)

    def clear(self) -> None:
        self.counted.clear()

    def figures(self) -> dict[str, object]:
        return {"counted": len(self.counted)}

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def recording(
    strategy: CountingStrategy | None = None,
    capacity: int = 1000,
    limits: Callable[[], AutoExitLimits] = AutoExitLimits,
    **more: Any,
) -> Iterator[ChunkStatisticsRecorder]:
    """A recorder that collects already."""
    strategy = strategy or MemoryBloomFilter(1000, 0.01)
    recorder = ChunkStatisticsRecorder(strategy, ALGORITHM, capacity, limits, **more)
    recorder.start()
    try:
        yield recorder
    finally:
        if isinstance(strategy, HeldStrategy):
            strategy.may_count.set()
        recorder.close()


def counted(recorder: Any) -> dict[str, Any]:
    """The status once all that was recorded is counted. Of a recorder, or a client over one."""
    wait_until(lambda: recorder.status()["async_queue"]["current_size"] == 0)
    status: dict[str, Any] = recorder.status()
    return status


class FakeLookups:
    """A `LookupClient` that answers what it is told to."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Prompt, bool]] = []
        self.forgotten: list[str] = []
        self.is_closed = False

    def layouts(self) -> list[KVLayout] | None:
        return []

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int | None:
        self.asked.append((lookup_id, prompt, may_wait))
        return self.answers.pop(0) if self.answers else 0

    def forget(self, lookup_id: str) -> None:
        self.forgotten.append(lookup_id)

    def name(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        self.is_closed = True
