"""The documented instruments of the in-process mode that have a source here: names, texts, buckets.

Which of them stay away, and why, is told in docs/metrics_embedded.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import pairwise

from lmcache.errors import ConfigError

logger = logging.getLogger(__name__)

PREFIX = "lmcache:"
BUCKETS_PREFIX = "histogram_bucket_"
_BUCKETS_MAX = 100

COUNTERS = {
    "num_retrieve_requests": "Loads into pages, one for each request that had a hit",
    "num_store_requests": "Stores from pages, one for each request and step that made chunks whole",
    "num_lookup_requests": "Prompts looked up",
    "num_requested_tokens": "Tokens that were to be loaded into pages",
    "num_hit_tokens": "Tokens that were loaded into pages",
    "num_stored_tokens": "Tokens stored",
    "num_lookup_tokens": "Tokens of the chunks that were asked for",
    "num_lookup_hits": "Tokens that lookups found",
    "num_vllm_hit_tokens": "Prompt tokens that vLLM had in its own prefix cache",
    "num_prompt_tokens": "Tokens of prompts",
    "num_remote_read_requests": "Objects loaded from remote tiers",
    "num_remote_read_bytes": "Bytes loaded from remote tiers",
    "num_remote_write_requests": "Objects written to remote tiers",
    "num_remote_write_bytes": "Bytes written to remote tiers",
    "local_cpu_evict_count": "Times that L1 made room by evicting",
    "local_cpu_evict_keys_count": "Objects that L1 evicted",
    "local_cpu_evict_failed_count": "Objects that found no room in L1, because all of it was in use",
    "forced_unpin_count": "Lookups whose locks ended by time, since nobody loaded or released them",
    "lookup_0_hit_requests": "Prompts looked up of which nothing was found",
}

GAUGES = {
    "retrieve_hit_rate": "Of the tokens that recent retrieves wanted, the share that was loaded",
    "lookup_hit_rate": "Of the tokens that recent lookups asked for, the share that was found",
    "local_cache_usage": "Bytes in use in L1",
    "remote_cache_usage": "Bytes in use in remote tiers",
    "local_storage_usage": "Bytes in use in the disk tier",
    "active_memory_objs_count": "Objects in L1",
    "pinned_memory_objs_count": "Objects in L1 that somebody has locked",
    "local_cpu_hot_cache_count": "Objects that L1 keeps; 0 while the hot cache is off",
    "local_cpu_keys_in_request_count": "Lookups that hold locks",
    "pin_monitor_pinned_objects_count": "The same: locks that nobody gives back end by time",
    "remote_put_task_num": "Objects on their way to tiers",
    "lmcache_is_healthy": "1: every tier answers",
    "get_blocking_failed_count": "Objects found in a tier that did not reach L1, since the last reset",
    "put_failed_count": "Objects that did not reach a tier, since the last reset",
    "storage_events_ongoing_count": "Fetches from tiers under way",
    "scheduler_unfinished_requests_count": "Requests that the connector follows",
    "connector_load_specs_count": "Loads that the next step begins",
    "connector_request_trackers_count": "Requests of which the connector keeps what was found",
    "connector_kv_caches_count": "Layers whose pages vLLM registered",
    "connector_layerwise_retrievers_count": "Layerwise loads under way",
    "connector_invalid_block_ids_count": "Blocks of failed loads that vLLM has not asked for yet",
    "chunk_statistics_enabled": "1: lookups are being counted",
    "chunk_statistics_total_requests": "Lookups counted",
    "chunk_statistics_total_chunks": "Chunks in them",
    "chunk_statistics_unique_chunks": "Chunks among those that were seen for the first time",
    "chunk_statistics_reuse_rate": "Share of chunks that were seen before",
    "chunk_statistics_bloom_filter_size_mb": "Size of the Bloom filter",
    "chunk_statistics_bloom_filter_fill_rate": "Share of its bits that are set",
    "chunk_statistics_file_count": "Files of chunk hashes",
    "chunk_statistics_current_file_size": "Bytes of the one being written",
    "periodic_threads_total_count": "Periodic threads",
    "periodic_threads_running_count": "Periodic threads that run",
    "periodic_threads_active_count": "Periodic threads that did something lately",
} | {
    f"periodic_threads_{level}_{figure}": f"Periodic threads of the level {level}: {meaning}"
    for level in ("critical", "high", "medium", "low")
    for figure, meaning in (("total", "all"), ("running", "those that run"), ("active", "those active lately"))
}

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_STEP_SECONDS = tuple(1e-5 * 2**i for i in range(20))
_MILLISECONDS = tuple(1000 * seconds for seconds in _SECONDS)
_TOKENS_PER_S = (1, 8, *(2**i for i in range(4, 17)))
_SHARES = tuple(tenths / 10 for tenths in range(11))

HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "time_to_retrieve": ("Seconds of a load into pages, from L1 or with the tiers behind it", _SECONDS),
    "time_to_store": ("Seconds of a store from pages", _SECONDS),
    "time_to_lookup": ("Seconds of a lookup, as the scheduler waits for it", _STEP_SECONDS),
    "retrieve_to_gpu_time": ("Seconds of the copying in it", _STEP_SECONDS),
    "store_from_gpu_time": ("Seconds of the copying in it", _STEP_SECONDS),
    "store_put_time": ("Seconds to hand stored objects on to the tiers", _STEP_SECONDS),
    "retrieve_speed": ("Tokens per second of a load into pages", _TOKENS_PER_S),
    "store_speed": ("Tokens per second of a store from pages", _TOKENS_PER_S),
    "remote_time_to_get": ("Milliseconds from asking a remote tier for an object until it is in L1", _MILLISECONDS),
    "remote_time_to_put": ("Milliseconds from handing an object to a remote tier until it is written", _MILLISECONDS),
    "request_cache_hit_rate": ("Share of a looked up prompt that was found", _SHARES),
}


def choose_buckets(extra_config: Mapping[str, object] | None) -> dict[str, tuple[float, ...]]:
    """Buckets by histogram: those documented, or those of `histogram_bucket_<name>`. Raises ConfigError."""
    buckets = {name: documented for name, (_, documented) in HISTOGRAMS.items()}
    for key, value in (extra_config or {}).items():
        name = key.removeprefix(BUCKETS_PREFIX)
        if name == key:
            continue
        if name in buckets:
            buckets[name] = _parse_buckets(key, value)
        else:
            logger.warning("extra_config %s has no effect: the histograms are %s", key, ", ".join(sorted(buckets)))
    return buckets


def _parse_buckets(key: str, value: object) -> tuple[float, ...]:
    complaint = f"extra_config {key} must be up to {_BUCKETS_MAX} rising numbers, such as [1, 2.5, 10] (got {value!r})"
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= _BUCKETS_MAX:
        raise ConfigError(complaint)
    if any(isinstance(part, bool) or not isinstance(part, str | int | float) for part in parts):
        raise ConfigError(complaint)
    try:
        bounds = tuple(float(part) for part in parts)
    except (ValueError, OverflowError) as error:
        raise ConfigError(complaint) from error
    is_rising = all(low < high for low, high in pairwise(bounds))
    if not is_rising or not all(map(math.isfinite, bounds)):
        raise ConfigError(complaint)
    return bounds
