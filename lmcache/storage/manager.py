"""The storage manager: composes L2 tiers and their controllers around whatever pool is open.

Every call may come from any thread. Those that reach a backend block, and are not for the
request loop. Knows no engine, no session, no HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmcache.core.keys import ObjectKey
from lmcache.errors import AdapterNotFoundError, ConfigError
from lmcache.l2.base import AdapterContext, Deleted, EvictionConfig, KeyPage, L2Adapter, Usage
from lmcache.l2.registry import L2AdapterSpec, make_adapter
from lmcache.storage.eviction_controller import PER_TENANT_POLICY, L2EvictionController, TenantLimits
from lmcache.storage.instruments import EventCounter, register_gauges
from lmcache.storage.loops import StorageLoops, report_thread
from lmcache.storage.metrics import StorageMetrics
from lmcache.storage.prefetch_controller import PrefetchConfig, PrefetchController
from lmcache.storage.prefetch_policies import make_prefetch_policy
from lmcache.storage.scrubber import Scrubber, ScrubConfig
from lmcache.storage.store_controller import StoreController
from lmcache.storage.store_policies import make_store_policy
from lmcache.storage.tier import Tier, TierConfig
from lmcache.storage.tier_life import TierState
from lmcache.storage.tier_route import TierRoute
from lmcache.telemetry.periodic import PeriodicThreadRegistry

logger = logging.getLogger(__name__)

_OPEN_PATIENCE_S = 15.0
# How often a clean stop looks whether any tier still takes what waits.
_DRAIN_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """`adapters` in order of configuration; `names` is what errors call each of them, by default the flag.
    `drain_timeout_s`: how long a clean stop waits for stores. `is_reader`: adapters leave their backends as
    they are."""

    adapters: tuple[L2AdapterSpec, ...] = ()
    names: tuple[str, ...] = ()
    store_policy: str = "default"
    prefetch_policy: str = "default"
    prefetch: PrefetchConfig = field(default_factory=PrefetchConfig)
    tier: TierConfig = field(default_factory=TierConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    drain_timeout_s: float = 30.0
    is_reader: bool = False


class StorageManager:
    """`owner_uid`: who writes slots on this server's behalf. `boot_id`: tells this server from others at a
    shared backend."""

    def __init__(
        self,
        config: StorageConfig,
        owner_uid: int,
        boot_id: int,
        metrics: StorageMetrics,
        limits: TenantLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the adapters and opens none. Raises ConfigError."""
        self.config = config
        # Of adapters that are put to use from now on; may be replaced at any time.
        self.tier_config = config.tier
        self._boot_id = boot_id
        self._clock = clock
        self._mutex = threading.Lock()
        self._tiers: list[Tier] = []
        # Removed ones, some call to which has not come back when they were closed.
        self._stuck: list[Tier] = []
        self._next_index = 0
        self._evictions: dict[int, EvictionConfig | None] = {}
        self.metrics = metrics
        self._events = EventCounter(self.metrics)
        self.stores = StoreController(
            make_store_policy(config.store_policy), self.metrics, clock, lambda: self._loops.store.wake()
        )
        self.prefetches = PrefetchController(
            make_prefetch_policy(config.prefetch_policy), config.prefetch, owner_uid, self.metrics, clock,
            lambda: self._loops.prefetch.wake(),
        )  # fmt: skip
        self._evictor = L2EvictionController(self._evictions, limits)
        self._scrubber = Scrubber(config.scrub, self.metrics, clock)
        self._loops = StorageLoops(
            self.stores.cycle, self.prefetches.cycle, self.prefetches.next_run_in_s,
            lambda: self._evictor.cycle(self.tiers()), lambda: self._scrubber.cycle(self.tiers()),
        )  # fmt: skip
        for number, spec in enumerate(config.adapters, start=1):
            try:
                self._add(spec)
            except ConfigError as error:
                name = config.names[number - 1] if config.names else f"--l2-adapter #{number}"
                raise ConfigError(f"{name}: {error}") from error
        register_gauges(metrics.registry, self)

    # Life

    def start(self, threads: PeriodicThreadRegistry, open_patience_s: float = _OPEN_PATIENCE_S) -> None:
        """Start loops and open the adapters; waits a while for them, and goes on without those that take longer, or are
        away."""
        self._loops.start(threads, scrubs=not self.config.is_reader)  # a scrub removes what is damaged
        tiers = self.tiers()
        for tier in tiers:
            tier.start()
        deadline_s = self._clock() + open_patience_s
        for tier in tiers:
            tier.wait_until_tried(max(0.0, deadline_s - self._clock()))

    def close(self) -> bool:
        """Hand over what waits for L2, within the time for it, and close the adapters; L1 must still be there.

        False: a thread hangs in its backend and may still touch the pool. Idempotent.
        """
        deadline_s = self._clock() + self.config.drain_timeout_s
        while self._clock() < deadline_s and not self.stores.wait_until_empty(_DRAIN_LOOK_S):
            self._loops.store.wake()
            if not any(tier.is_usable and not tier.route.is_frozen for tier in self.tiers()):
                break
        for tier in self.tiers():
            self.stores.remove_tier(tier.index)
            self.prefetches.remove_tier(tier.index)
            tier.close(max(1.0, deadline_s - self._clock()))
        with self._mutex:
            return not any(tier.has_stuck_threads for tier in (*self._tiers, *self._stuck))

    # Adapters

    def tiers(self) -> list[Tier]:
        with self._mutex:
            return list(self._tiers)

    def route(self, index: int, route: TierRoute) -> None:
        """From now on a tier takes part like this; what waits there goes by it, too."""
        for tier in self.tiers():
            if tier.index == index:
                tier.route = route
        self._loops.store.wake()

    @property
    def has_adapters(self) -> bool:
        return bool(self._tiers)

    def add_adapter(self, spec: L2AdapterSpec, route: TierRoute | None = None) -> int:
        """Put another adapter to use while everything runs; its index. Raises ConfigError."""
        tier = self._add(spec, route)
        tier.start()
        return tier.index

    def check_adapter(self, spec: L2AdapterSpec) -> None:
        """Whether it could be put to use, as far as that shows before it is opened. Raises ConfigError."""
        make_adapter(spec, self._context(spec, persists=True)).close()  # which may lie where another one is at work

    def replace_adapter(self, index: int, spec: L2AdapterSpec, drain_timeout_s: float = 30.0) -> int:
        """Put an adapter to use instead of another one, the same way; its index. Where it cannot be made, the old one
        goes on. Raises ConfigError, AdapterNotFoundError."""
        adapter = self._make(spec)
        route = next((tier.route for tier in self.tiers() if tier.index == index), None)
        self.remove_adapter(index, drain_timeout_s)
        tier = self._register(spec, adapter, route)
        tier.start()
        return tier.index

    def _add(self, spec: L2AdapterSpec, route: TierRoute | None = None) -> Tier:
        return self._register(spec, self._make(spec), route)

    def _make(self, spec: L2AdapterSpec) -> L2Adapter:
        # The end of a reader removes nothing, whatever those who write there do at theirs.
        adapter = make_adapter(spec, self._context(spec, spec.persist_enabled or self.config.is_reader))
        adapter.add_listener(self._events)
        return adapter

    def _context(self, spec: L2AdapterSpec, persists: bool) -> AdapterContext:
        return AdapterContext(
            spec.type, spec.eviction, persists, boot_id=self._boot_id, clock=self._clock,
            is_reader=self.config.is_reader,
        )  # fmt: skip

    def _register(self, spec: L2AdapterSpec, adapter: L2Adapter, route: TierRoute | None) -> Tier:
        with self._mutex:
            index, self._next_index = self._next_index, self._next_index + 1
            tier = Tier(index, adapter, self.metrics, self.tier_config, self._clock)
            tier.route = route or tier.route
            self._evictions[index] = spec.eviction
            self._tiers.append(tier)
        self.stores.add_tier(tier)
        self.prefetches.add_tier(tier)
        return tier

    def remove_adapter(self, index: int, drain_timeout_s: float = 30.0) -> None:
        """Route nothing there any more, finish what is under way, close it. Raises AdapterNotFoundError."""
        tier = next((tier for tier in self.tiers() if tier.index == index), None)
        if tier is None or not tier.drain():
            raise AdapterNotFoundError(f"no L2 adapter has index {index}, or it is being removed")
        self.stores.remove_tier(index)
        self.prefetches.remove_tier(index)
        tier.close(drain_timeout_s)
        with self._mutex:
            self._tiers.remove(tier)
            del self._evictions[index]
            if tier.has_stuck_threads:
                self._stuck.append(tier)

    def find_l2_adapter(self, selector: str | None) -> Tier:
        """The first adapter of that class name or configured type; without a selector, the first of all.
        Raises AdapterNotFoundError."""
        for tier in self.tiers():
            if selector is None or selector in (tier.adapter.class_name, tier.name):
                return tier
        raise AdapterNotFoundError(f"no L2 adapter with type_name={selector!r}")

    # Operators

    def delete_l2_keys(self, tier: Tier, keys: Sequence[ObjectKey]) -> Deleted:
        """Raises BackendError."""
        return tier.call(lambda adapter: adapter.delete(keys))

    def list_l2_keys(self, tier: Tier, model_name: str | None, page_size: int, page_token: str | None) -> KeyPage:
        """Raises PageTokenError, ListingUnsupportedError, BackendError."""
        return tier.call(lambda adapter: adapter.list_l2_keys(model_name, page_size, page_token))

    def reconfigurable_backends(self) -> list[str]:
        return sorted({tier.name for tier in self.tiers() if tier.adapter.is_reconfigurable})

    def reconfigure_status(self, backend: str) -> list[dict[str, object]]:
        """One entry per adapter of that configured type, in order."""
        return [
            {
                "adapter_index": number,
                "l2_adapter_index": tier.index,
                "backend": tier.name,
                "supported_operations": list(tier.adapter.supported_operations),
                "status": tier.adapter.report_reconfigurable(),
            }
            for number, tier in enumerate(self._reconfigurable(backend))
        ]

    def reconfigure_l2_adapter(
        self, backend: str, operation: str, adapter_index: int, payload: dict[str, object]
    ) -> dict[str, object]:
        """`adapter_index` counts the adapters of that backend. Raises AdapterNotFoundError, ReconfigureError,
        BackendError."""
        tiers = self._reconfigurable(backend)
        if not 0 <= adapter_index < len(tiers):
            raise AdapterNotFoundError(f"{backend} adapter not found")
        tier = tiers[adapter_index]
        with tier.gate.change():
            result = tier.call(lambda adapter: adapter.reconfigure(operation, payload))
        return {**result, "adapter_index": adapter_index}

    def _reconfigurable(self, backend: str) -> list[Tier]:
        return [tier for tier in self.tiers() if tier.name == backend and tier.adapter.is_reconfigurable]

    def evicts_by_quota(self, tier: Tier) -> bool:
        config = self._evictions.get(tier.index)
        return config is not None and config.eviction_policy == PER_TENANT_POLICY

    def usage_by_tier(self) -> list[tuple[Tier, Usage]]:
        return [(tier, tier.adapter.usage()) for tier in self.tiers()]

    # Telling

    def report_status(self) -> dict[str, object]:
        """The controllers' and adapters' part of `storage_manager` in /status."""
        tiers = self.tiers()
        reports = [tier.report() for tier in tiers]
        counts = {
            "num_l2_adapters": len(tiers),
            "num_active_adapters": sum(tier.state is TierState.ACTIVE for tier in tiers),
            "num_draining_adapters": sum(tier.state is TierState.DRAINING for tier in tiers),
        }
        return {
            "is_healthy": all(bool(report["is_healthy"]) for report in reports) and self._loops.are_healthy,
            "store_controller": {
                **report_thread(self._loops.store),
                "policy": self.config.store_policy,
                "pending_keys_count": self.stores.num_pending,
                "in_flight_task_count": self.stores.num_inflight,
                **counts,
            },
            "prefetch_controller": {**report_thread(self._loops.prefetch), **self.prefetches.report(), **counts},
            "l2_eviction_controller": {
                **report_thread(self._loops.eviction),
                "adapters": self._evictor.report(tiers),
            },
            "l2_scrubber": {**report_thread(self._loops.scrub), **self._scrubber.report()},
            "l2_adapters": reports,
            "num_l2_adapters": len(tiers),
        }
