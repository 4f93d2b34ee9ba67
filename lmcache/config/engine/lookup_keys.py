"""Keys of lookups between scheduler and workers, and of the statistics made there."""

from __future__ import annotations

from lmcache.config.engine.definition import optional, setting
from lmcache.config.engine.kinds import FLAG, choice, integers, number, text, whole


class LookupKeys:
    enable_async_loading: bool = setting(
        FLAG, False, "Lookups answer later, and what they find is loaded into L1 meanwhile."
    )
    lookup_timeout_ms: int = setting(whole(1, 600_000), 3000, "Milliseconds after which a lookup is a miss.")
    lookup_server_worker_ids: tuple[int, ...] | None = optional(
        integers(), "Ranks that answer lookups; null or empty: all."
    )
    enable_scheduler_bypass_lookup: bool = setting(
        FLAG, False, "The scheduler looks into the L2 tiers itself, without asking workers."
    )
    external_lookup_client: str | None = optional(
        text(), "Address of a lookup service of others.",
        refusal="asks for lookups by a foreign store (Mooncake), which this release does not have; leave the key out",
    )  # fmt: skip
    hit_miss_ratio: float | None = optional(
        number(0, 1), "Share of every prompt that is a miss at least, for experiments; null: hits are not limited."
    )
    enable_chunk_statistics: bool = setting(FLAG, False, "Count total and unique chunks of all lookups.")
    chunk_statistics_auto_start_statistics: bool = setting(FLAG, False, "Count from the start on.")
    chunk_statistics_auto_exit_timeout_hours: float = setting(
        number(), 0.0, "Hours after which counting ends by itself; 0: never."
    )
    chunk_statistics_auto_exit_target_unique_chunks: int = setting(
        whole(), 0, "Unique chunks at which counting ends by itself; 0: never."
    )
    chunk_statistics_strategy: str = setting(
        choice("memory_bloom_filter", "file_hash"), "memory_bloom_filter",
        "Unique chunks are told by a Bloom filter in memory, or hashes are written to files.",
    )  # fmt: skip
