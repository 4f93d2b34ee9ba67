"""What a rank's tiers bring up into L1 for a lookup or a load, and who is told of it, exactly once.

Knows no lookup ids and no pages: whoever asks says what to lock while the prefetch controller still holds it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lmcache.core.keys import ObjectKey
from lmcache.embedded.config import Rank
from lmcache.embedded.routing import Routing
from lmcache.engine.pool import Pool
from lmcache.l1.namespace import NamespaceKey
from lmcache.storage.manager import StorageManager
from lmcache.storage.prefetch_job import PrefetchRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A controller that does not answer by its own deadline is not waited for much longer.
_ANSWER_SLACK_S = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """Chunks `first_chunk...` of these, as far as they are held without a gap. `tail_blocks` as in `jobs.Prompt`."""

    key: NamespaceKey
    digests: list[bytes]
    first_chunk: int
    tail_blocks: int = 0


class Fetcher:
    """Any thread. `close` answers those that still wait, with None."""

    def __init__(
        self, pool: Pool, rank: Rank, chunk_bytes: int, storage: StorageManager, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._rank = rank
        self._chunk_bytes = chunk_bytes
        self._storage = storage
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting: set[Fetch[Any]] = set()
        self._is_closed = False

    def is_promising(self, key: NamespaceKey, digest: bytes) -> bool:
        """Whether some tier that may be asked might hold this chunk. Never blocks."""
        prefetches = self._storage.prefetches
        kv_rank, group_id = self._rank.rank_group
        wanted = ObjectKey(digest, key.model_name, kv_rank, group_id, key.cache_salt)
        return bool(prefetches.usable_tiers()) and prefetches.might_hold([wanted])

    def prepare(self, take: Callable[[int], T], on_answer: Callable[[T | None], None]) -> Fetch[T]:
        """`take` gets how many leading chunks count, in the controller's thread, while they are locked; what it
        returns goes to `on_answer`, exactly once. None instead: it was given up, or failed."""
        return Fetch(take, on_answer, self._forget)

    def begin(self, fetch: Fetch[Any], wanted: Wanted, wait_s: float, routing: Routing) -> None:
        """What arrives after `wait_s` is not lost where L1 keeps what is loaded."""
        with self._mutex:
            is_closed = self._is_closed
            if not is_closed:
                self._waiting.add(fetch)
        if is_closed:
            fetch.give_up()
            return
        request = self._request(wanted, wait_s, routing)
        self._storage.prefetches.submit(
            fetch, request, lambda _: fetch.arrive(self._num_found(fetch, request))
        )  # fmt: skip

    def give_up(self, fetch: Fetch[Any]) -> None:
        """Nobody waits for it any more; when this returns it was answered."""
        fetch.give_up()
        self._storage.prefetches.release(fetch)

    def fetch(self, wanted: Wanted, wait_s: float, routing: Routing, take: Callable[[int], T]) -> T | None:
        """The same, waiting for it."""
        done = threading.Event()
        answers: list[T | None] = []

        def on_answer(answer: T | None) -> None:
            answers.append(answer)
            done.set()

        fetch = self.prepare(take, on_answer)
        self.begin(fetch, wanted, wait_s, routing)
        if not done.wait(wait_s + _ANSWER_SLACK_S):
            self.give_up(fetch)
            done.wait()
        return answers[0]

    def close(self) -> None:
        """Nothing will be brought up any more. Idempotent."""
        with self._mutex:
            self._is_closed = True
            waiting = list(self._waiting)
        for fetch in waiting:
            fetch.give_up()

    def _forget(self, fetch: Fetch[Any]) -> None:
        with self._mutex:
            self._waiting.discard(fetch)

    def _request(self, wanted: Wanted, wait_s: float, routing: Routing) -> PrefetchRequest:
        tail_bytes = wanted.tail_blocks * self._rank.layout.block_bytes
        return PrefetchRequest(
            self._pool, wanted.key, [self._rank.rank_group], [self._chunk_bytes], wanted.digests, wanted.first_chunk,
            self._clock() + wait_s, routing.retains, keeps_late=routing.retains, counts_l1=routing.reads_l1,
            tail_lengths=(tail_bytes,) if tail_bytes else (),
        )  # fmt: skip

    def _num_found(self, fetch: Fetch[Any], request: PrefetchRequest) -> int:
        """In the controller's thread. Where L1 counts, all that it has is good."""
        if request.counts_l1:
            return len(request.digests)
        job = self._storage.prefetches.job(fetch)
        return job.found_chunks if job is not None else 0


class Fetch(Generic[T]):
    """One answer: what was taken in time, or None. Its own key among the prefetches."""

    def __init__(
        self, take: Callable[[int], T], on_answer: Callable[[T | None], None], on_over: Callable[[Fetch[T]], None]
    ) -> None:
        self._take = take
        self._on_answer = on_answer
        self._on_over = on_over
        # Held while the answer is taken, so that whoever gives up knows that nothing is taken after.
        self._mutex = threading.Lock()
        self._is_over = False

    def arrive(self, num_chunks: int) -> None:
        taken: T | None = None
        with self._mutex:
            if self._is_over:
                return
            self._is_over = True
            try:
                taken = self._take(num_chunks)
            except Exception:  # the root of an answer: log, answer that nothing came, go on
                logger.exception("what was fetched could not be taken")
        self._end(taken)

    def give_up(self) -> None:
        with self._mutex:
            if self._is_over:
                return
            self._is_over = True
        self._end(None)

    def _end(self, answer: T | None) -> None:
        self._on_over(self)
        self._on_answer(answer)
