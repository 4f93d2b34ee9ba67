"""The instruments of tiers and controllers, under the documented names."""

from __future__ import annotations

from lmcache.telemetry.metrics import Counter, MetricRegistry

_PREFIX = "lmcache_mp_"


class StorageMetrics:
    """`l2_name` is the configured type of an adapter. Two counters of L1 are the engine's, which counts there too."""

    def __init__(self, registry: MetricRegistry, l1_read_failure: Counter, l1_allocation_failure: Counter) -> None:
        self.l1_read_failure = l1_read_failure
        self.l1_allocation_failure = l1_allocation_failure
        self.registry = registry
        counter, histogram = registry.counter, registry.histogram
        self.store_submitted = counter(
            _PREFIX + "l2_store_submitted_requests", "Stores handed to an adapter, one for each object"
        )
        self.store_submitted_objects = counter(
            _PREFIX + "l2_store_submitted_objects_chunks", "Objects queued for L2", "cache_salt"
        )
        self.store_completed = counter(
            _PREFIX + "l2_store_completed_requests", "Of those, the ones that ended, well or not", "l2_name"
        )
        self.store_completed_objects = counter(
            _PREFIX + "l2_store_completed_objects_chunks", "Objects stored in L2", "cache_salt"
        )
        self.store_dropped = counter(
            _PREFIX + "l2_store_dropped_chunks", "Objects that did not reach an adapter", "l2_name", "reason"
        )
        self.prefetch_lookup = counter(_PREFIX + "l2_prefetch_lookup_requests", "Prefetches that asked L2")
        self.prefetch_lookup_objects = counter(
            _PREFIX + "l2_prefetch_lookup_objects_chunks", "Objects asked of L2", "cache_salt"
        )
        self.prefetch_hit = counter(_PREFIX + "l2_prefetch_hit_chunks", "Leading objects found in L2")
        self.prefetch_load_submitted = counter(
            _PREFIX + "l2_prefetch_load_submitted_requests", "Adapters asked to load for a prefetch"
        )
        self.prefetch_load_submitted_objects = counter(
            _PREFIX + "l2_prefetch_load_submitted_objects_chunks", "Objects asked to be loaded", "cache_salt"
        )
        self.prefetch_load_completed = counter(
            _PREFIX + "l2_prefetch_load_completed_chunks", "Objects loaded into L1", "cache_salt"
        )
        self.prefetch_failure = counter(
            _PREFIX + "l2_prefetch_failure_chunks", "Objects found in L2 that did not reach L1", "reason", "model_name"
        )
        self.load_completed = counter(_PREFIX + "l2_load_completed_requests", "Loads that ended", "l2_name")
        self.evicted_objects = counter(_PREFIX + "l2_evicted_objects_chunks", "Objects evicted from L2", "cache_salt")
        self.lossy_loads = counter(_PREFIX + "l2_lossy_loads_chunks", "Objects loaded through a lossy serde", "l2_name")
        self.corrupt_objects = counter(
            _PREFIX + "l2_corrupt_objects_chunks", "Objects found torn, rotten or foreign, and removed", "l2_name"
        )
        self.backend_failures = counter(_PREFIX + "l2_backend_failures", "Calls that a backend failed", "l2_name")
        self.scrubbed = counter(_PREFIX + "l2_scrubbed_chunks", "Objects verified in the background", "l2_name")
        self.store_throughput = histogram(
            _PREFIX + "l2_store_throughput_GB_per_second", "From being queued to stored", "l2_name"
        )
        self.load_throughput = histogram(
            _PREFIX + "l2_load_throughput_GB_per_second", "From being queued to loaded", "l2_name"
        )

    def stored(self, l2_name: str, num_bytes: int, duration_s: float) -> None:
        self.store_throughput.observe(num_bytes / 1e9 / max(duration_s, 1e-9), l2_name)

    def load_done(self, l2_name: str, num_bytes: int, duration_s: float) -> None:
        self.load_completed.add(1, l2_name)
        self.load_throughput.observe(num_bytes / 1e9 / max(duration_s, 1e-9), l2_name)
