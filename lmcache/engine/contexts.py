"""A registered worker's KV context as /status shows it: plain values from its registered layout."""

from __future__ import annotations

import itertools

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.engine.registry import Client

_LOGICAL_AXES = "[blocks, heads, tokens, content]"


def report_context(worker: Client, world_size: int) -> dict[str, object]:
    """Ranks register in any order, so their instance ids do not tell which is which: `rank` does."""
    return {
        "model_name": worker.model_name,
        "world_size": world_size,
        "rank": worker.rank,
        "kv_cache_layout": _report_layout(worker.layout) if worker.layout is not None else {},
    }


def _report_layout(layout: KVLayout) -> dict[str, object]:
    layers = iter(layout.layer_indices)
    return {
        "num_layers": layout.num_layers,
        "num_blocks": layout.num_blocks,
        "cache_size_per_token": layout.bytes_per_token,
        "kernel_groups": [
            _report_group(layout, group, index, list(itertools.islice(layers, group.num_layers)))
            for index, group in enumerate(layout.groups)
        ],
    }


def _report_group(layout: KVLayout, group: KernelGroup, index: int, layers: list[int]) -> dict[str, object]:
    """Engines whose layers need several tables of blocks are declined: there is one engine and one object group."""
    return {
        "kernel_group_idx": index,
        "engine_group_idx": 0,
        "object_group_idx": 0,
        "num_layers": group.num_layers,
        "layer_indices": layers,
        "tokens_per_block": layout.block_size,
        "slots_per_block": layout.block_size,
        "dtype": group.dtype,
        "engine_kv_concrete_shape": str(_tensor_shape(layout, group)),
        "is_mla": layout.is_mla,
        "engine_kv_format": layout.format_name,
        "engine_kv_shape": _LOGICAL_AXES,
        "attention_backend": group.attention_backend,
    }


def _tensor_shape(layout: KVLayout, group: KernelGroup) -> list[int]:
    """Of one layer as the engine registered it: its kernels may cut a block into several of fewer tokens."""
    shape = list(group.shape)
    is_cut = len(shape) == 4 and 0 < shape[2] < layout.block_size and layout.block_size % shape[2] == 0
    return [shape[0] * (layout.block_size // shape[2]), *shape[1:]] if is_cut else shape
