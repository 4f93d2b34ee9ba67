"""An adapter that fails on purpose. Which calls fail depends on the seed and their number alone."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence

from lmcache.core.keys import ObjectKey
from lmcache.errors import BackendError, CorruptObjectError, ObjectMissingError
from lmcache.l2.base import AdapterContext, Deleted, L2Adapter, Loaded, Source, StoreStatus
from lmcache.l2.fault_inject.config import Fault, FaultInjectConfig, Operation
from lmcache.l2.forwarding import ForwardingL2Adapter
from lmcache.l2.registry import make_adapter, parse_adapter_object


class FaultInjectL2Adapter(ForwardingL2Adapter):
    """`sleep` makes the delays."""

    def __init__(
        self,
        inner: L2Adapter,
        config: FaultInjectConfig,
        type_name: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self.type_name = type_name
        self._config = config
        self._sleep = sleep
        self._mutex = threading.Lock()
        # One stream for each kind of call: how many lookups there were does not change which load fails.
        self._streams = {operation: random.Random(f"{config.seed} {operation}") for operation in Operation}
        self._counts: dict[str, int] = {}

    @property
    def class_name(self) -> str:
        return type(self).__name__

    def store(self, key: ObjectKey, source: Source) -> StoreStatus:
        self._suffer(Operation.STORE)
        return self.inner.store(key, source)

    def lookup(self, keys: Sequence[ObjectKey]) -> list[bool]:
        self._suffer(Operation.LOOKUP)
        found = self.inner.lookup(keys)
        gaps = [position for position in self._gaps(len(keys)) if found[position]]
        self.inner.release([keys[position] for position in gaps])
        for position in gaps:
            found[position] = False
        return found

    def _gaps(self, num_keys: int) -> set[int]:
        from_the_tail = {int(num_keys * (1 - ratio)) for ratio in self._config.gap_tail_ratios}
        return {position for position in {*self._config.gap_indices, *from_the_tail} if position < num_keys}

    def load(self, key: ObjectKey, target: memoryview) -> Loaded:
        self._suffer_load(key)
        return self.inner.load(key, target)

    def load_whole(self, key: ObjectKey) -> memoryview:
        self._suffer_load(key)
        return self.inner.load_whole(key)

    def delete(self, keys: Sequence[ObjectKey]) -> Deleted:
        self._suffer(Operation.DELETE)
        return self.inner.delete(keys)

    def _suffer_load(self, key: ObjectKey) -> None:
        fault = self._suffer(Operation.LOAD)
        if fault is Fault.CORRUPT:
            error = CorruptObjectError("corrupted on purpose")
            self.inner.discard(key, error)
            raise error
        if fault is Fault.MISSING:
            self.inner.discard(key, ObjectMissingError("removed on purpose"))
            raise ObjectMissingError("removed on purpose")

    def _suffer(self, operation: Operation) -> Fault | None:
        """The fault of this call, if it has one; errors and delays happen here. Raises BackendError."""
        fault = self._draw(operation)
        if fault is Fault.DELAY:
            self._sleep(self._config.delay_s)
        elif fault is Fault.ERROR:
            raise BackendError(f"failed on purpose ({operation})")
        return fault

    def _draw(self, operation: Operation) -> Fault | None:
        faults = self._config.faults_of(operation)
        if not faults:
            return None
        with self._mutex:
            stream = self._streams[operation]
            chance, choice = stream.random(), stream.randrange(len(faults))
            if chance >= self._config.rate:
                return None
            name = f"{operation}_{faults[choice]}"
            self._counts[name] = self._counts.get(name, 0) + 1
        return faults[choice]

    def report_status(self) -> dict[str, object]:
        with self._mutex:
            counts = dict(self._counts)
        return {
            **self.inner.report_status(),
            "type": self.class_name,
            "inner_type": self.inner.class_name,
            "injected_fault_count": counts,
        }


def make_around(config: FaultInjectConfig, context: AdapterContext) -> L2Adapter:
    """The adapter that `inner` describes, inside. Raises ConfigError."""
    spec = parse_adapter_object(config.inner, "inner")
    inner_context = dataclasses.replace(
        context,
        type_name=spec.type,
        eviction=spec.eviction or context.eviction,
        is_persistent=context.is_reader or (spec.persist_enabled and context.is_persistent),
    )
    return FaultInjectL2Adapter(make_adapter(spec, inner_context), config, context.type_name)
