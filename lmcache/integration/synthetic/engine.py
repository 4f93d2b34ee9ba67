"""One rank and its scheduler over plain memory: what an engine does, without the model.

A context manager: it registers on entry, and on exit ends its sessions and unregisters,
however far it came.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import msgspec
import numpy as np

from lmcache.errors import ServerUnavailableError
from lmcache.integration.mp.checksums import ReadBlocks, answer_query
from lmcache.integration.mp.ledger import WriteLedger
from lmcache.integration.mp.lookups import LookupClient
from lmcache.integration.mp.membership import Joined, Membership, MembershipConfig
from lmcache.integration.mp.worker import TransferConfig, TransferWorker
from lmcache.integration.synthetic.shape import ModelShape, make_layout
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.protocol import messages as m
from lmcache.protocol.blobs import pack_slots
from lmcache.telemetry.steps import NO_STEPS, StepObserver


@dataclass(frozen=True, slots=True)
class SyntheticConfig:
    """`num_blocks`: of the engine's cache. `lookup_timeout_s`: how long a lookup may take."""

    url: str
    shape: ModelShape
    block_size: int
    num_blocks: int
    model_name: str = "synthetic"
    token: str = field(default="", repr=False)
    num_threads: int = 1
    join_timeout_s: float = 10.0
    lookup_timeout_s: float = 5.0
    pending_store_bytes_max: int = 1 << 62


class SyntheticEngine:
    """Owned by one thread. `pages`: `[layers, blocks, page bytes]`; `worker` and `lookups` are there once it joined."""

    joined: Joined
    worker: TransferWorker
    lookups: LookupClient

    def __init__(self, config: SyntheticConfig, steps: StepObserver = NO_STEPS) -> None:
        self.config = config
        self.layout = make_layout(config.shape, config.block_size, config.num_blocks)
        page_bytes = self.layout.groups[0].page_bytes
        # Written once, so that no later measurement pays for the first touch.
        self.pages = np.ones((config.shape.num_layers, config.num_blocks, page_bytes), dtype=np.uint8)
        self._steps = steps
        self._engine_id = secrets.token_hex(8)
        self._ledger = WriteLedger()
        connection = MembershipConfig(config.url, config.token)
        self._members = (
            Membership(connection, _client_uid(), "worker", self._as_worker, self._answer, touches_pool=True),
            Membership(connection, _client_uid(), "scheduler", self._as_scheduler),
        )

    @property
    def root(self) -> bytes:
        return self.joined.registered.root

    @property
    def instance_id(self) -> int:
        """Of the worker, as the HTTP API names it."""
        worker = self._members[0].last
        return worker.registered.instance_id if worker is not None else -1

    def __enter__(self) -> SyntheticEngine:
        self.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def join(self) -> None:
        """Raises ServerUnavailableError; then, as after any failure, nothing is left behind."""
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        for member in self._members:
            member.start()
        as_worker, as_scheduler = (member.wait_until_joined(self.config.join_timeout_s) for member in self._members)
        if as_worker is None or as_scheduler is None:
            raise ServerUnavailableError(
                f"the server at {self.config.url} did not take the registration in {self.config.join_timeout_s:g} s"
            )
        self.joined = as_scheduler
        self.worker = TransferWorker(
            TransferConfig(
                0, self.layout.blocks_per_chunk(as_scheduler.welcome.chunk_size), num_threads=self.config.num_threads,
                pending_store_bytes_max=self.config.pending_store_bytes_max,
            ),
            CpuCopier([self.pages]), self._members[0], self._ledger, steps=self._steps,
            report=self._members[0].tell_later,
        )  # fmt: skip
        self.lookups = LookupClient(self._members[1], self.config.lookup_timeout_s)
        self.worker.start()
        self.lookups.prepare()

    def close(self) -> None:
        """Again and again, if you like."""
        if hasattr(self, "worker"):
            self.worker.stop()
            self.lookups.close()
        for member in self._members:
            member.stop()

    def _as_worker(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterWorker:
        attempt, writing = self._ledger.snapshot_for_registration()
        layout = msgspec.json.encode(self.layout)
        return m.RegisterWorker(
            self._engine_id, self.config.model_name, 1, 0, layout, nonce, attempt, pack_slots(writing),
            self.config.token,
        )  # fmt: skip

    def _as_scheduler(self, welcome: m.Welcome, nonce: bytes) -> m.RegisterScheduler:
        facts = json.dumps({"model": self.config.model_name}).encode()
        return m.RegisterScheduler(self._engine_id, self.config.model_name, 1, facts, nonce, token=self.config.token)

    def _answer(self, query: m.ChecksumQuery) -> m.ChecksumResult:
        is_bfloat16 = self.config.shape.dtype == "bfloat16"
        layers = [_reader(pages, is_bfloat16) for pages in self.pages]
        return answer_query(query, layers, self.config.num_blocks)


def _reader(pages: np.ndarray, is_bfloat16: bool) -> ReadBlocks:
    """Blocks as checksums see them: bfloat16 widened to float32, which are its upper bits."""

    def read(block_ids: Sequence[int]) -> Iterator[memoryview]:
        for block_id in block_ids:
            page = pages[block_id]
            yield memoryview(page.view(np.uint16).astype(np.uint32) << 16 if is_bfloat16 else page).cast("B")

    return read


def _client_uid() -> int:
    return secrets.randbits(63) | 1
