"""The worker half of the in-process mode: one rank's engine, the server of its lookups, its copies."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lmcache.core.layout import KVLayout
from lmcache.embedded.config import EmbeddedConfig, Rank
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.jobs import Prompt, RetrieveJob, StoreJob
from lmcache.embedded.layer_loads import LayerLoadThread
from lmcache.embedded.lookup.switch import ServerSwitch
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.embedded.pool import private_folder, sweep_private_pools
from lmcache.embedded.slot_log import slots_line, slots_of_blocks
from lmcache.errors import DeclinedError, PoolError
from lmcache.integration.vllm.embedded_layers import LayerwiseStep, layer_numbers
from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata
from lmcache.integration.vllm.kv_events import MEDIUM
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.kv_copy.cpu import CpuCopier
from lmcache.telemetry.periodic import PeriodicThreadRegistry

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
        lookups: ServerSwitch,
        threads: PeriodicThreadRegistry,
        is_layerwise: Callable[[], bool] = lambda: False,
        load_timeout_s: Callable[[], float] = lambda: 10.0,
        logs_slots: Callable[[], bool] = lambda: False,
        meter: EmbeddedMetrics | None = None,
    ) -> None:
        """What can be called is asked anew in every step. `load_timeout_s`: for all layers of a step together."""
        self._instance_id = instance_id
        self._make_config = make_config
        self._model_name = model_name
        self._parallel = parallel
        self._lookups = lookups
        self._threads = threads
        self._is_layerwise = is_layerwise
        self._load_timeout_s = load_timeout_s
        self._logs_slots = logs_slots
        self._meter = meter or EmbeddedMetrics.unshown()
        self._layer_thread = LayerLoadThread()
        self._layer_numbers: dict[str, int] | None = None
        self._step: LayerwiseStep | None = None
        self._refusal = "its KV cache is not registered"
        self.engine: EmbeddedEngine | None = None
        self._bad_block_ids: set[int] = set()
        self._has_step_failed = False
        self._is_layerwise_given_up = False
        self._events: list[StoredEvent] = []

    # Life

    def register(self, layout: KVLayout, regions: list[np.ndarray]) -> None:
        """The rank's pages are there: open an engine over them. Raises ConfigError."""
        parallel = self._parallel
        rank = Rank(self._model_name, parallel.world_size, parallel.rank, parallel.source_rank, layout)
        sweep_private_pools()
        try:
            copier = CpuCopier(regions)
            engine = EmbeddedEngine(
                self._make_config(), rank, copier, private_folder(), meter=self._meter, threads=self._threads
            )
        except (DeclinedError, PoolError) as error:
            self.decline(str(error))
            return
        engine.start()
        self.engine = engine
        self._layer_numbers = layer_numbers(layout, copier.num_layers)
        backends = ", ".join(engine.usage())
        logger.info(
            "rank %d of %s keeps KV in %s (%s)", rank.rank, self._instance_id, engine.pool.config.folder, backends
        )
        self._lookups.serve(self)

    def decline(self, reason: str) -> None:
        """This rank caches nothing; who looks up is told why."""
        logger.warning("lmcache declines to cache for this engine: %s", reason)
        self._refusal = reason
        self._lookups.serve(self)

    def close(self) -> None:
        """Idempotent."""
        self._lookups.shut_down()
        self._layer_thread.close()
        if self.engine is not None:
            self.engine.close()

    # Lookups

    def introduce(self) -> KVLayout:
        if self.engine is None:
            raise DeclinedError(self._refusal)
        return self.engine.rank.layout

    def lookup(self, lookup_id: str, prompt: Prompt, wait_s: float) -> int:
        return self.engine.lookup(lookup_id, prompt, wait_s) if self.engine is not None else 0

    def lookup_later(self, lookup_id: str, prompt: Prompt, wait_s: float, on_found: Callable[[int], None]) -> None:
        if self.engine is None:
            on_found(0)
        else:
            self.engine.lookup_later(lookup_id, prompt, wait_s, on_found)

    def release(self, lookup_ids: Iterable[str]) -> int:
        return self.engine.release(lookup_ids) if self.engine is not None else 0

    # Each step

    def begin(self, meta: EmbeddedMetadata) -> None:
        """A step begins. Whether it goes layer by layer stays so until it ends."""
        self._has_step_failed = False
        if self._step is not None:  # vLLM did not end the last one
            self._end_layers(self._step, is_wanted=False)
            self._step.abort()
            self._step = None
        if self.engine is None:
            return
        if meta.loads:
            self.engine.begin_step()
        if self._goes_by_layers():
            numbers = self._layer_numbers or {}
            self._step = LayerwiseStep(self.engine, numbers, self._layer_thread, meta.stores, self._load_timeout_s())

    def _goes_by_layers(self) -> bool:
        if not self._is_layerwise() or self._is_layerwise_given_up:
            return False
        if self._layer_numbers is None:
            self._give_layers_up("vLLM keeps the pages of its layers in one piece")
        return self._layer_numbers is not None

    def _give_layers_up(self, reason: str) -> None:
        self._is_layerwise_given_up = True
        logger.warning("use_layerwise has no effect, whole steps are loaded and saved: %s", reason)

    def load(self, meta: EmbeddedMetadata) -> None:
        """Before the forward pass: what this returns from has been read, or is on its way, or is reported as bad."""
        if self._step is None and not meta.loads and not meta.released:
            return
        if self._step is not None:
            over = self._step.load(meta.loads)
            failed = [(job, failure) for job, failure in over if failure]
            self._note_failures(failed)
            self._count_loads([job for job, _ in over], failed, 0.0)
        else:
            self._note_failures([(job, failure) for job in meta.loads if (failure := self._load(job))])
        for job in meta.loads:
            block_ids = [block_id for part in job.parts for block_id in part.block_ids]
            self._log_slots("Retrieve", job.lookup_id, block_ids, job.num_tokens)
        if self.engine is not None and meta.released:
            self.engine.release(meta.released)

    def _load(self, job: RetrieveJob) -> str:
        if self.engine is None:
            return "this rank caches nothing"
        begun_s = self._meter.clock()
        try:
            failure = self.engine.retrieve(job)
        except Exception as error:  # the root of a copy: a failed load, never a failed step
            logger.exception("a load failed")
            failure = f"{type(error).__name__}: {error}"
        self._count_loads((job,), ((job, failure),) if failure else (), self._meter.clock() - begun_s)
        return failure

    def _count_loads(
        self, jobs: Iterable[RetrieveJob], failed: Iterable[tuple[RetrieveJob, str]], seconds: float
    ) -> None:
        bad = {job for job, _ in failed}
        for job in jobs:
            self._meter.retrieved(job.num_tokens, 0 if job in bad else job.num_tokens, seconds)

    def _note_failures(self, failed: Iterable[tuple[RetrieveJob, str]]) -> None:
        for job, failure in failed:
            logger.warning("request %s: a load failed and is recomputed: %s", job.lookup_id, failure)
            self._has_step_failed = True
            self._bad_block_ids |= job.block_ids

    def wait_for_layer(self, name: str) -> None:
        """Before a layer reads its pages."""
        if self._step is not None:
            self._step.wait_for(name)

    def save_layer(self, name: str) -> None:
        """After a layer wrote its pages."""
        if self._step is None or self._has_step_failed:
            return
        try:
            self._step.save(name)
        except Exception:  # the root of a copy: a later miss, never a failed step
            logger.exception("a store failed")
            self._step.abort()

    def save(self, meta: EmbeddedMetadata) -> None:
        """After the forward pass: when this returns, the pages have been read.

        vLLM calls this also on the way out of a forward pass that raised. Pages of such a step, or of one
        that was computed on top of a load that failed, are not saved.
        """
        if self._step is None and not meta.stores:
            return
        has_raised = sys.exc_info()[1] is not None
        step, self._step = self._step, None
        if step is not None:
            self._end_layers(step, is_wanted=not has_raised)
        if self.engine is None or self._has_step_failed or has_raised:
            if step is not None:
                step.abort()
            return
        for job in meta.stores:
            self._store(self.engine.store if step is None else step.commit, job)

    def _end_layers(self, step: LayerwiseStep, is_wanted: bool) -> None:
        failed = step.end_loads(is_wanted)
        self._note_failures(failed)
        jobs, took_s = step.ended_loads()
        self._count_loads(jobs, failed, took_s)
        if is_wanted and step.was_unheeded:
            self._give_layers_up("vLLM did not call its hooks for every layer")

    def _store(self, store: Callable[[StoreJob], tuple[bytes, ...]], job: StoreJob) -> None:
        self._log_slots("Store", job.request_id, [each for row in job.block_ids for each in row], job.num_tokens)
        begun_s = self._meter.clock()
        try:
            stored = set(store(job))
        except Exception:  # the root of a copy: a later miss, never a failed step
            logger.exception("a store failed")
            return
        block_size = self.engine.rank.layout.block_size if self.engine is not None else 0
        self._meter.stored(tokens_of(job, stored, block_size), self._meter.clock() - begun_s)
        for digest, story in zip(job.digests, job.stories, strict=False):
            if digest in stored:
                tokens = list(story.token_ids)
                self._events.append(StoredEvent([digest], story.parent, tokens, len(tokens), story.lora_name))

    def _log_slots(self, verb: str, request_id: str, block_ids: Sequence[int], num_tokens: int) -> None:
        if self.engine is None or not self._logs_slots():
            return
        slots = slots_of_blocks(block_ids, self.engine.rank.layout.block_size, num_tokens)
        logger.info("%s", slots_line(verb, request_id, num_tokens, slots))

    @property
    def num_bad_blocks(self) -> int:
        return len(self._bad_block_ids)

    @property
    def num_layer_loads(self) -> int:
        """Loads of the step under way that go layer by layer."""
        step = self._step
        return step.num_loads if step is not None else 0

    def take_bad_block_ids(self) -> set[int]:
        bad, self._bad_block_ids = self._bad_block_ids, set()
        return bad

    def take_events(self) -> list[StoredEvent]:
        events, self._events = self._events, []
        return events


def tokens_of(job: StoreJob, stored: set[bytes], block_size: int) -> int:
    """Of those of its chunks; the last one may have blocks that are not full."""
    if not job.digests:
        return 0
    num_tokens = sum(
        len(row) * block_size for digest, row in zip(job.digests, job.block_ids, strict=True) if digest in stored
    )
    num_unfilled = sum(map(len, job.block_ids)) * block_size - job.num_tokens
    return num_tokens - num_unfilled if job.digests[-1] in stored else num_tokens
