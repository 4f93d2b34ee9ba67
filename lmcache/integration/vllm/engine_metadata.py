"""One half of an engine as operators are told of it: who it is, and what its pages hold. Without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmcache.config.json_safe import make_json_safe
from lmcache.core.layout import KVLayout
from lmcache.embedded.manager import EngineMetadata
from lmcache.integration.vllm.parallel import ParallelStrategy


def engine_metadata(
    vllm_config: Any, parallel: ParallelStrategy, role: str, chunk_size: int, layout: KVLayout | None = None
) -> EngineMetadata:
    """`layout`: of this rank's pages, once vLLM registered them; the scheduler has none."""
    model, transfer = vllm_config.model_config, vllm_config.kv_transfer_config
    local_world_size = _local_world_size(vllm_config, parallel)
    return EngineMetadata(
        model_name=str(model.model),
        world_size=parallel.world_size,
        local_world_size=local_world_size,
        worker_id=parallel.rank,
        local_worker_id=parallel.rank % local_world_size,
        kv_dtype=_kv_dtype(vllm_config, layout),
        kv_shape=_kv_shape(vllm_config, parallel, chunk_size, layout),
        use_mla=parallel.is_mla,
        role=role,
        first_rank=parallel.column * parallel.tensor_size if parallel.is_mla else 0,
        served_model_name=_served_name(model),
        chunk_size=chunk_size,
        kv_layer_groups_manager=_layer_groups(layout),
        engine_id=str(transfer.engine_id),
        kv_connector_extra_config=_shown_settings(transfer.kv_connector_extra_config),
    )


def _local_world_size(vllm_config: Any, parallel: ParallelStrategy) -> int:
    """Of the ranks of one data parallel engine."""
    size = getattr(vllm_config.parallel_config, "local_world_size", None)
    return size if isinstance(size, int) and 0 < size <= parallel.world_size else parallel.world_size


def _served_name(model: Any) -> str:
    """vLLM takes the first of several names for its own metrics."""
    names = model.served_model_name
    first = names[0] if isinstance(names, list | tuple) and names else names
    return str(first or model.model)


def _kv_dtype(vllm_config: Any, layout: KVLayout | None) -> str:
    if layout is not None:
        return layout.groups[0].dtype
    name = vllm_config.cache_config.cache_dtype
    if name == "auto":
        return str(vllm_config.model_config.dtype)
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    return str(STR_DTYPE_TO_TORCH_DTYPE.get(name, name))


def _kv_shape(
    vllm_config: Any, parallel: ParallelStrategy, chunk_size: int, layout: KVLayout | None
) -> tuple[int, ...]:
    """Of one chunk of this rank: layers, K and V, tokens, KV heads, head size."""
    model, vllm_parallel = vllm_config.model_config, vllm_config.parallel_config
    if layout is not None:
        num_layers = sum(len(group.layer_names) for group in layout.groups)
    else:
        num_layers = model.get_num_layers(vllm_parallel)
    num_heads = 1 if parallel.is_mla else model.get_num_kv_heads(vllm_parallel)
    return num_layers, 1 if parallel.is_mla else 2, chunk_size, num_heads, model.get_head_size()


def _layer_groups(layout: KVLayout | None) -> object:
    """Which layers have pages of one shape, in short."""
    if layout is None:
        return None
    return [
        {
            "num_layers": len(group.layer_names),
            "first_layer": group.layer_names[0],
            "last_layer": group.layer_names[-1],
            "dtype": group.dtype,
            "shape": list(group.shape),
            "page_bytes": group.page_bytes,
            "attention_backend": group.attention_backend,
        }
        for group in layout.groups
    ]


def _shown_settings(settings: Mapping[str, object] | None) -> Mapping[str, object]:
    shown = make_json_safe(dict(settings or {}))
    return shown if isinstance(shown, dict) else {}
