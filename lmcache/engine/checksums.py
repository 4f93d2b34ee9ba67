"""Checksums on request: ask a worker for the MD5s of engine blocks, and wait for its answer.

The worker's control thread answers. A long list is asked for in pieces, so that no answer outgrows
a frame; a worker that is dead, stopped or busy costs a time-out, not a hang.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from lmcache.core.block_ranges import expand_block_ids, format_block_ids
from lmcache.core.layout import KVLayout
from lmcache.engine.registry import Client
from lmcache.errors import BlockRangeError, InstanceError, NoKVError, UnsupportedFormatError
from lmcache.protocol.messages import ChecksumQuery, ChecksumResult, Reply

PostToPeer = Callable[[bytes, Reply], None]

# Of a list: so many times the blocks of the cache, but never more than that.
_IDS_PER_BLOCK_MAX = 4
_IDS_MAX = 1_000_000
# Of one answer, over all layers: it is made and sent in one piece.
_DIGESTS_MAX = 200_000
# Of one query: its answer takes some 34 bytes a digest.
_DIGESTS_PER_QUERY_MAX = 65_536
_BYTES_PER_QUERY = 64 << 20
# Patience with a worker: this long for any answer, and longer the more it has to read.
_PATIENCE_S = 5.0
_SLOWEST_BYTES_PER_S = 50 << 20
_QUERIES_PER_WORKER_MAX = 4


@dataclass(frozen=True, slots=True)
class ChecksumRequest:
    """What an operator asks for; `block_ids` in their order, duplicates kept."""

    block_ids: Sequence[range]
    chunk_size: int
    layerwise: bool = False


@dataclass(frozen=True, slots=True)
class BlockChecksums:
    """One row of MD5s over all layers, or one by layer index; a digest per chunk."""

    rows: list[list[str]]
    layer_indices: list[int]
    num_chunks: int
    block_id_ranges: str


class ChecksumModule:
    """Thread-safe. `post` sends a message to a peer's control connection."""

    def __init__(self, post: PostToPeer, patience_s: float = _PATIENCE_S) -> None:
        self._post = post
        self._patience_s = patience_s
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[int, Future[list[list[str]]]]] = {}
        self._num_asked: Counter[int] = Counter()
        self._mutex = threading.Lock()

    def of_worker(self, worker: Client, request: ChecksumRequest) -> BlockChecksums:
        """Blocks until the worker has answered; not from the loop's thread. Raises NoKVError, UnsupportedFormatError,
        BlockRangeError, InstanceError."""
        layout = _checked_layout(worker)
        ids_max = min(_IDS_MAX, _IDS_PER_BLOCK_MAX * layout.num_blocks)
        block_ids = expand_block_ids(request.block_ids, layout.num_blocks, ids_max)
        indices = sorted(layout.layer_indices) if request.layerwise else []
        rows: list[list[str]] = [[] for _ in range(len(indices) if request.layerwise else 1)]
        # A chunk size may be any number; there are no more blocks than asked for.
        chunk_size = min(request.chunk_size, max(1, len(block_ids)))
        if -(-len(block_ids) // chunk_size) * len(rows) > _DIGESTS_MAX:
            raise BlockRangeError(f"too many checksums in a single request (limit={_DIGESTS_MAX}): raise chunk_size")
        with self._turn(worker):
            for piece in _pieces(block_ids, chunk_size, len(rows), layout.block_bytes):
                num_chunks = -(-len(piece) // chunk_size)
                patience_s = self._patience_s + len(piece) * layout.block_bytes // _SLOWEST_BYTES_PER_S
                answer = self.query(worker, piece, chunk_size, request.layerwise, patience_s)
                _check_shape(worker, answer, len(rows), num_chunks)
                for row, more in zip(rows, answer, strict=True):
                    row.extend(more)
        return BlockChecksums(rows, indices, len(rows[0]), format_block_ids(block_ids))

    def query(
        self, worker: Client, block_ids: list[int], chunk_size: int, layerwise: bool, timeout_s: float
    ) -> list[list[str]]:
        """One question and its answer. Raises InstanceError."""
        query_id = next(self._ids)
        future: Future[list[list[str]]] = Future()
        with self._mutex:
            self._waiting[query_id] = (worker.uid, future)
        try:
            self._post(worker.peer, ChecksumQuery(query_id, block_ids, chunk_size, layerwise, timeout_s))
            return future.result(timeout_s)
        except TimeoutError:
            raise InstanceError(f"instance {worker.instance_id} did not answer within {timeout_s:g} s") from None
        finally:
            with self._mutex:
                self._waiting.pop(query_id, None)

    def answered(self, uid: int, result: ChecksumResult) -> None:
        """A client's answer; only the one who was asked is heard."""
        with self._mutex:
            asked_uid, future = self._waiting.get(result.query_id, (0, None))
        if future is None or asked_uid != uid or future.done():
            return
        if result.error:
            future.set_exception(InstanceError(f"the instance could not answer: {result.error}"))
        else:
            future.set_result(result.checksums)

    @contextmanager
    def _turn(self, worker: Client) -> Iterator[None]:
        """Nobody gathers questions that wait behind one another for a worker that does not answer."""
        with self._mutex:
            if self._num_asked[worker.uid] >= _QUERIES_PER_WORKER_MAX:
                raise InstanceError(
                    f"instance {worker.instance_id} has {_QUERIES_PER_WORKER_MAX} checksum requests to answer already"
                )
            self._num_asked[worker.uid] += 1
        try:
            yield
        finally:
            with self._mutex:
                self._num_asked[worker.uid] -= 1
                self._num_asked += Counter()  # drops those at zero


def _checked_layout(worker: Client) -> KVLayout:
    layout = worker.layout
    if layout is None or not layout.num_layers or layout.num_blocks < 1:
        raise NoKVError("kv_caches empty")
    if not layout.has_block_axis:
        raise UnsupportedFormatError(f"checksum not supported for GPU KV format {layout.format_name}")
    return layout


def _pieces(block_ids: list[int], chunk_size: int, num_rows: int, block_bytes: int) -> Iterator[list[int]]:
    """Whole chunks each, few enough for one answer and for a control thread with other duties."""
    by_digests = _DIGESTS_PER_QUERY_MAX // num_rows
    by_bytes = _BYTES_PER_QUERY // (chunk_size * block_bytes)
    step = chunk_size * max(1, min(by_digests, by_bytes))
    for start in range(0, len(block_ids), step):
        yield block_ids[start : start + step]


def _check_shape(worker: Client, rows: list[list[str]], num_rows: int, num_chunks: int) -> None:
    if not rows:
        raise NoKVError("kv_caches empty")
    if len(rows) != num_rows or any(len(row) != num_chunks for row in rows):
        raise InstanceError(f"instance {worker.instance_id} answered {len(rows)} rows of checksums, not {num_rows}")
