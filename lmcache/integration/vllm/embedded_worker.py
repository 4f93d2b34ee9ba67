"""The worker half of the in-process mode: one rank's engine, the server of its lookups, its copies."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmcache.core.layout import KVLayout
from lmcache.embedded.config import EmbeddedConfig, Rank
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.jobs import Prompt, RetrieveJob, StoreJob
from lmcache.embedded.lookup.base import LookupServer
from lmcache.embedded.lookup.factory import LookupClientFactory
from lmcache.embedded.pool import private_folder, sweep_private_pools
from lmcache.errors import DeclinedError, PoolError
from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
from lmcache.integration.vllm.kv_events import MEDIUM
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.kv_copy.cpu import CpuCopier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One chunk that this rank stored, with the attributes that vLLM's connector reads."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_name: str | None
    lora_id: int | None = None
    medium: str = MEDIUM


class EmbeddedWorker:
    """Belongs to the model runner's thread; lookups come in the server's. A `LookupTarget`."""

    def __init__(
        self,
        instance_id: str,
        make_config: Callable[[], EmbeddedConfig],
        model_name: str,
        parallel: ParallelStrategy,
        lookups: LookupClientFactory,
    ) -> None:
        self._instance_id = instance_id
        self._make_config = make_config
        self._model_name = model_name
        self._parallel = parallel
        self._lookups = lookups
        self._server: LookupServer | None = None
        self._refusal = "its KV cache is not registered"
        self.engine: EmbeddedEngine | None = None
        self._bad_block_ids: set[int] = set()
        self._has_step_failed = False
        self._events: list[StoredEvent] = []

    # Life

    def register(self, layout: KVLayout, regions: list[np.ndarray]) -> None:
        """The rank's pages are there: open an engine over them. Raises ConfigError."""
        parallel = self._parallel
        source_rank = parallel.column * parallel.tensor_size if parallel.is_mla else parallel.rank
        rank = Rank(self._model_name, parallel.world_size, parallel.rank, source_rank, layout)
        sweep_private_pools()
        try:
            engine = EmbeddedEngine(self._make_config(), rank, CpuCopier(regions), private_folder())
        except (DeclinedError, PoolError) as error:
            self.decline(str(error))
            return
        engine.start()
        self.engine = engine
        backends = ", ".join(engine.usage())
        logger.info(
            "rank %d of %s keeps KV in %s (%s)", rank.rank, self._instance_id, engine.pool.config.folder, backends
        )
        self._serve()

    def decline(self, reason: str) -> None:
        """This rank caches nothing; who looks up is told why."""
        logger.warning("lmcache declines to cache for this engine: %s", reason)
        self._refusal = reason
        self._serve()

    def _serve(self) -> None:
        self._server = self._lookups.create_lookup_server(self._parallel.rank, self)
        self._server.start()

    def close(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if self.engine is not None:
            self.engine.close()

    # Lookups

    def introduce(self) -> KVLayout:
        if self.engine is None:
            raise DeclinedError(self._refusal)
        return self.engine.rank.layout

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        return self.engine.lookup(lookup_id, prompt, wait_s) if self.engine is not None else 0

    # Each step

    def load(self, meta: EmbeddedMetadata) -> None:
        """Before the forward pass: what this returns from has been read, or is reported as bad."""
        self._has_step_failed = False
        for job in meta.loads:
            failure = self._load(job)
            if failure:
                logger.warning("request %s: a load failed and is recomputed: %s", job.lookup_id, failure)
                self._has_step_failed = True
                self._bad_block_ids |= job.block_ids
        if self.engine is not None and meta.released:
            self.engine.release(meta.released)

    def _load(self, job: RetrieveJob) -> str:
        if self.engine is None:
            return "this rank caches nothing"
        try:
            return self.engine.retrieve(job)
        except Exception as error:  # the root of a copy: a failed load, never a failed step
            logger.exception("a load failed")
            return f"{type(error).__name__}: {error}"

    def save(self, meta: EmbeddedMetadata) -> None:
        """After the forward pass: when this returns, the pages have been read.

        vLLM calls this also on the way out of a forward pass that raised. Pages of such a step, or of one
        that was computed on top of a load that failed, are not saved.
        """
        if self.engine is None or self._has_step_failed or sys.exc_info()[1] is not None:
            return
        for job in meta.stores:
            self._store(self.engine, job)

    def _store(self, engine: EmbeddedEngine, job: StoreJob) -> None:
        try:
            stored = set(engine.store(job))
        except Exception:  # the root of a copy: a later miss, never a failed step
            logger.exception("a store failed")
            return
        for digest, story in zip(job.digests, job.stories, strict=False):
            if digest in stored:
                tokens = list(story.token_ids)
                self._events.append(StoredEvent([digest], story.parent, tokens, len(tokens), story.lora_name))

    def take_bad_block_ids(self) -> set[int]:
        bad, self._bad_block_ids = self._bad_block_ids, set()
        return bad

    def take_events(self) -> list[StoredEvent]:
        events, self._events = self._events, []
        return events
