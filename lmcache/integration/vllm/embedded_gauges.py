"""Gauges over the two halves of vLLM's connector. Each may be read by any thread at any time."""

from __future__ import annotations

from lmcache.embedded.metric_sources import watch_engine
from lmcache.embedded.metrics import EmbeddedMetrics
from lmcache.integration.vllm.embedded_scheduler import EmbeddedScheduler
from lmcache.integration.vllm.embedded_worker import EmbeddedWorker


def watch_scheduler(metrics: EmbeddedMetrics, scheduler: EmbeddedScheduler) -> None:
    metrics.watch("scheduler_unfinished_requests_count", lambda: scheduler.num_trackers)
    metrics.watch("connector_request_trackers_count", lambda: scheduler.num_trackers)
    metrics.watch("connector_load_specs_count", lambda: scheduler.num_new_loads)


def watch_worker(metrics: EmbeddedMetrics, worker: EmbeddedWorker) -> None:
    """Its engine too, from when there is one."""
    watch_engine(metrics, lambda: worker.engine)
    metrics.watch("connector_kv_caches_count", lambda: _num_layers(worker))
    metrics.watch("connector_layerwise_retrievers_count", lambda: worker.num_layer_loads)
    metrics.watch("connector_invalid_block_ids_count", lambda: worker.num_bad_blocks)


def _num_layers(worker: EmbeddedWorker) -> float:
    engine = worker.engine
    return sum(len(group.layer_names) for group in engine.rank.layout.groups) if engine is not None else 0
