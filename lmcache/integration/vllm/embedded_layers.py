"""One step of a rank in which KV is copied layer by layer: loads ahead of the forward pass, saves behind it.

vLLM calls a hook before each attention layer and one after it. Where it does not, what was loaded cannot be
trusted: the layer may have been computed before its KV was there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lmcache.core.layout import KVLayout
from lmcache.embedded.engine import EmbeddedEngine
from lmcache.embedded.jobs import RetrieveJob, StoreJob
from lmcache.embedded.layer_loads import LayerLoads, LayerLoadThread
from lmcache.embedded.layer_transfers import LayerLoad, LayerStore

logger = logging.getLogger(__name__)

_NOT_WAITED = "vLLM did not wait for every layer"


def layer_numbers(layout: KVLayout, num_copied: int) -> dict[str, int] | None:
    """Which layer of a copier each of vLLM's is; None where the pages of layers lie in one piece."""
    names = [name for group in layout.groups for name in group.layer_names]
    return {name: number for number, name in enumerate(names)} if len(names) == num_copied else None


class LayerwiseStep:
    """One use: `load`, then `wait_for` and `save` as vLLM computes its layers, `end_loads`, and at last `commit` for
    each store, or `abort`. Belongs to the model runner's thread. `numbers`: as from `layer_numbers`."""

    def __init__(
        self,
        engine: EmbeddedEngine,
        numbers: Mapping[str, int],
        thread: LayerLoadThread,
        stores: Sequence[StoreJob],
        timeout_s: float,
    ) -> None:
        self._engine = engine
        self._numbers = numbers
        self._thread = thread
        self._timeout_s = timeout_s
        self._jobs: list[RetrieveJob] = []
        self._took_s = 0.0
        self._loads: LayerLoads | None = None
        self._missed = set(numbers.values())
        self._unbegun = list(stores)
        self._stores: dict[StoreJob, LayerStore | None] = {}

    # Loads

    def load(self, jobs: Sequence[RetrieveJob]) -> list[tuple[RetrieveJob, str]]:
        """Begin these loads; those that are over already, with empty or why they failed."""
        over: list[tuple[RetrieveJob, str]] = []
        loads: list[LayerLoad] = []
        for job in jobs:
            try:
                load = self._engine.begin_retrieve(job)
                if load.failure:  # L1 may have no room for all of it at once: whole, now, a part after the other
                    load.end(is_whole=False)
                    over.append((job, self._engine.retrieve(job)))
                    continue
            except Exception as error:  # the root of a copy: a failed load, never a failed step
                logger.exception("a load failed")
                over.append((job, f"{type(error).__name__}: {error}"))
                self._engine.release((job.lookup_id,))
            else:
                loads.append(load)
                self._jobs.append(job)
        if loads:
            self._loads = LayerLoads(loads, len(self._numbers), self._timeout_s)
            self._thread.start(self._loads)
        return over

    def wait_for(self, name: str) -> None:
        """Returns once this layer's pages are there, or are given up. An unknown layer may use any other's."""
        if self._loads is not None:
            number = self._numbers.get(name)
            self._missed.discard(-1 if number is None else number)
            self._loads.wait(len(self._numbers) - 1 if number is None else number)

    def end_loads(self, is_wanted: bool) -> list[tuple[RetrieveJob, str]]:
        """Nobody writes to the pages any more; those that failed, and why. All of them unless they are wanted."""
        loads, self._loads = self._loads, None
        if loads is None:
            return []
        failures = loads.end(is_wanted)
        self._took_s = loads.took_s
        if is_wanted and self._missed:
            failures = [failure or _NOT_WAITED for failure in failures]
        return [(job, failure) for job, failure in zip(self._jobs, failures, strict=True) if failure]

    @property
    def num_loads(self) -> int:
        return len(self._jobs)

    def ended_loads(self) -> tuple[list[RetrieveJob], float]:
        """Those that could begin, and the seconds until the last layer of the last one was there or given up."""
        return self._jobs, self._took_s

    @property
    def was_unheeded(self) -> bool:
        """Whether layers that were loaded were computed without a hook before them."""
        return bool(self._jobs and self._missed)

    # Saves

    def save(self, name: str) -> None:
        """This layer has written its pages. Slots are reserved with the first layer that has."""
        number = self._numbers.get(name)
        if number is None:
            return
        unbegun, self._unbegun = self._unbegun, []
        for job in unbegun:
            self._stores[job] = self._engine.begin_store(job)
        for store in self._stores.values():
            if store is not None:
                store.copy(number)

    def commit(self, job: StoreJob) -> tuple[bytes, ...]:
        """The forward pass is over: the digests that were stored."""
        if job not in self._stores:
            return self._engine.store(job)
        store = self._stores.pop(job)
        return self._engine.end_store(job, store) if store is not None else ()

    def abort(self) -> None:
        """Nothing of this step is stored any more. Idempotent."""
        self._unbegun = []
        for job, store in self._stores.items():
            self._stores[job] = None
            if store is not None:
                store.abort()
