"""Checksums on request: ask a worker for the MD5 of engine blocks, and wait for its answer.

The worker's control thread answers; a worker that is dead or busy costs a time-out, not a hang.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError

from lmcache.engine.registry import Client
from lmcache.errors import DeadlineExceededError, LMCacheError
from lmcache.protocol.messages import ChecksumQuery, ChecksumResult, Reply

PostToPeer = Callable[[bytes, Reply], None]


class ChecksumModule:
    """Thread-safe. `post` sends a message to a peer's control connection."""

    def __init__(self, post: PostToPeer) -> None:
        self._post = post
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[list[list[str]]]] = {}
        self._mutex = threading.Lock()

    def query(
        self, worker: Client, block_ids: list[int], chunk_size: int, layerwise: bool, timeout_s: float
    ) -> list[list[str]]:
        """MD5s by layer (one row when not layerwise). Not from the loop's thread."""
        query_id = next(self._ids)
        future: Future[list[list[str]]] = Future()
        with self._mutex:
            self._waiting[query_id] = future
        try:
            self._post(worker.peer, ChecksumQuery(query_id, block_ids, chunk_size, layerwise))
            return future.result(timeout_s)
        except TimeoutError:
            raise DeadlineExceededError(f"instance {worker.instance_id} did not answer in {timeout_s:g} s") from None
        finally:
            with self._mutex:
                self._waiting.pop(query_id, None)

    def answered(self, result: ChecksumResult) -> None:
        with self._mutex:
            future = self._waiting.get(result.query_id)
        if future is None or future.done():
            return
        if result.error:
            future.set_exception(LMCacheError(result.error))
        else:
            future.set_result(result.checksums)
