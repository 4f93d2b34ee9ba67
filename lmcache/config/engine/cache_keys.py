"""Keys of what is cached and how: chunks, the pool, saving, events."""

from __future__ import annotations

import math

from lmcache.config.engine.definition import optional, setting
from lmcache.config.engine.kinds import FLAG, choice, number, text, whole

# The largest size whose bytes fit into 63 bits.
_SIZE_GB_MAX = 8e9
_INSTANCE_ID_CHARACTERS_MAX = 200


def _is_instance_id(value: str) -> bool:
    return len(value) <= _INSTANCE_ID_CHARACTERS_MAX and value.isprintable()


class CacheKeys:
    chunk_size: int = setting(whole(1, 1 << 20), 256, "Tokens of a chunk.", mutable=False)
    pre_caching_hash_algorithm: str = setting(
        choice("builtin", "blake3", "sha256_cbor"), "builtin",
        "Hash of token chunks. `builtin` is blake3: Python's own hash differs from process to process.", mutable=False,
    )  # fmt: skip
    local_cpu: bool = setting(
        FLAG, True, "Whether L1 keeps what is stored and loaded (the hot cache). The pool is there in any case."
    )
    max_local_cpu_size: float = setting(
        number(-math.inf, _SIZE_GB_MAX), 5.0, "Size of the pool in GiB; 0 or less: no pool.", mutable=False
    )
    reserve_local_cpu_size: float = setting(
        number(0, _SIZE_GB_MAX), 0.0, "Memory in GiB that the pool leaves free; it is made smaller for it.",
        mutable=False,
    )  # fmt: skip
    cache_policy: str = setting(
        choice("LRU", "LFU", "FIFO", "MRU"), "LRU", "Which chunk of L1 and disk is evicted next."
    )
    save_decode_cache: bool = setting(FLAG, False, "Also store what was generated.")
    save_unfull_chunk: bool = setting(FLAG, False, "Also store the last chunk of a prompt when it is not whole.")
    min_retrieve_tokens: int = setting(whole(), 0, "A hit of fewer tokens is not loaded.")
    priority_limit: int | None = optional(
        whole(-(1 << 31), 1 << 31), "Requests with a higher priority number than this are not stored."
    )
    use_layerwise: bool = setting(FLAG, False, "Load and save layer by layer.")
    blocking_timeout_secs: int = setting(
        whole(1, 86400), 10, "Seconds that all loads of a step may take; past it they are misses."
    )
    pin_timeout_sec: int = setting(whole(1), 300, "Seconds after which a pinned chunk is let go.")
    pin_check_interval_sec: int = setting(whole(1, 86400), 30, "Seconds between two looks for such pins.")
    enable_kv_events: bool = setting(FLAG, False, "Tell vLLM's subscribers of KV events what is stored and removed.")
    py_enable_gc: bool = setting(FLAG, True, "Whether Python's garbage collector runs in this process.")
    lmcache_instance_id: str = setting(
        text(f"a printable text of at most {_INSTANCE_ID_CHARACTERS_MAX} characters", _is_instance_id), "",
        "Name of this instance; empty: `lmcacheengineconfig_` and a random number.", mutable=False,
    )  # fmt: skip
