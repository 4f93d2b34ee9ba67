"""vLLM's registered KV tensors in our terms: a `KVLayout`, and the engine's own memory as regions of whole pages.

vLLM hands over one `[blocks, heads, tokens, content]` view per layer, all views of one
allocation in any physical order. We only find where pages lie; what is in them is opaque.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import DeclinedError
from lmcache.integration.vllm.regions import LayerPages, find_pages, find_regions

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

# Methods whose drafts come from no KV of their own. A draft model's KV at a chunk's last token
# depends on the token after it, which the chunk's key does not name.
_DRAFTS_WITHOUT_KV = frozenset({"ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator"})
_FORMAT_AXES = {"L": "NL", "B": "NB", "H": "NH", "N": "BS", "C": "HS"}


def unsupported_reason(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig | None) -> str | None:
    """Why this engine's KV cannot be cached, in one line; None where it can."""
    return _config_reason(vllm_config) or _parallel_reason(vllm_config) or _cache_reason(kv_cache_config)


def _config_reason(vllm_config: VllmConfig) -> str | None:
    model, speculative = vllm_config.model_config, vllm_config.speculative_config
    if model.is_encoder_decoder:
        return "encoder-decoder models are not supported: their KV depends on more than the prompt's prefix"
    if vllm_config.attention_config.use_non_causal or vllm_config.diffusion_config is not None:
        return "models that attend to later tokens are not supported: a prefix does not decide its KV"
    if vllm_config.weight_transfer_config is not None:
        return "weights that are replaced while the engine runs (weight_transfer_config) are not supported"
    if vllm_config.attention_config.hisparse_config is not None:
        return "HiSparse keeps KV outside of the block pool and is not supported"
    if speculative is not None and speculative.method not in _DRAFTS_WITHOUT_KV:
        return (
            f"speculative decoding by {speculative.method!r} is not supported: its draft has KV that depends on "
            f"tokens after the prefix; without KV of their own are {', '.join(sorted(_DRAFTS_WITHOUT_KV))}"
        )
    return None


def _parallel_reason(vllm_config: VllmConfig) -> str | None:
    parallel = vllm_config.parallel_config
    context_sizes = (parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    if max(context_sizes) > 1:
        return f"context parallelism (decode {context_sizes[0]}, prefill {context_sizes[1]}) is not supported"
    backend = parallel.distributed_executor_backend
    may_leave_host = parallel.nnodes_within_dp > 1 or backend in ("ray", "external_launcher")
    if parallel.world_size > 1 and may_leave_host:
        return (
            f"the {parallel.world_size} ranks of this engine (executor {backend!r}, {parallel.nnodes_within_dp} "
            f"nodes) may run on other hosts, which one server cannot serve: use the executor 'mp' on one host"
        )
    return None


def _cache_reason(kv_cache_config: KVCacheConfig | None) -> str | None:
    if kv_cache_config is None:
        return None
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return "the model has no KV cache"
    if len(groups) > 1:
        kinds = ", ".join(sorted({type(spec).__name__ for group in groups for spec in _specs(group.kv_cache_spec)}))
        return f"models with {len(groups)} groups of KV blocks ({kinds}) are not supported"
    reasons = [_spec_reason(spec) for spec in _specs(groups[0].kv_cache_spec)]
    return next((reason for reason in reasons if reason), None)


def _specs(spec: KVCacheSpec) -> list[KVCacheSpec]:
    return list(getattr(spec, "kv_cache_specs", {"": spec}).values())


def _spec_reason(spec: KVCacheSpec) -> str | None:
    """By exact class: a subclass is there because it keeps its blocks differently."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

    if type(spec) not in (FullAttentionSpec, MLAAttentionSpec) or not spec.prefix_cacheable:
        return f"KV of the kind {type(spec).__name__} is not supported: only full attention keeps every block"
    if getattr(spec, "non_causal", False):
        return "models that attend to later tokens are not supported: a prefix does not decide its KV"
    if spec.tokens_per_state != 1:
        return f"KV with {spec.tokens_per_state} tokens per state is not supported"
    return None


def describe_layout(
    kv_caches: Mapping[str, torch.Tensor], vllm_config: VllmConfig, kv_cache_config: KVCacheConfig
) -> tuple[KVLayout, list[np.ndarray]]:
    """Layout and regions `[layers, blocks, page bytes]` for `CpuCopier`, in the order of a chunk's bytes.

    Regions are views of the engine's memory and keep it alive. Raises DeclinedError.
    """
    num_blocks = kv_cache_config.num_blocks
    layers = _layers(kv_caches, kv_cache_config)
    is_mla = bool(vllm_config.model_config.use_mla)
    layout = KVLayout(
        block_size=_block_size(kv_cache_config),
        num_blocks=num_blocks,
        groups=_kernel_groups(layers, num_blocks, vllm_config),
        format_name=_format_name(vllm_config, is_mla),
        packing=_packing([layer.name for layer in layers], vllm_config),
        is_mla=is_mla,
    )
    return layout, find_regions(layers, num_blocks)


def _layers(kv_caches: Mapping[str, torch.Tensor], kv_cache_config: KVCacheConfig) -> list[LayerPages]:
    """Layers that own memory, in the order vLLM laid them out: names beyond those share another's KV."""
    names = [name for tensor in kv_cache_config.kv_cache_tensors for name in tensor.layers]
    missing = [name for name in names if name not in kv_caches]
    if missing or not names:
        raise DeclinedError(f"vLLM registered no KV tensor for {', '.join(missing) or 'any layer'}")
    owners = {kv_caches[name].data_ptr() for name in names}
    strays = [name for name in kv_caches if name not in names and kv_caches[name].data_ptr() not in owners]
    if strays:
        raise DeclinedError(f"vLLM registered KV of {', '.join(strays)} outside of its cache configuration")
    return [find_pages(name, kv_caches[name], kv_cache_config.num_blocks) for name in names]


def _kernel_groups(layers: Sequence[LayerPages], num_blocks: int, vllm_config: VllmConfig) -> tuple[KernelGroup, ...]:
    """Neighbours of one shape together: the order of layers is the order of their pages in a chunk."""
    groups: list[list[LayerPages]] = []
    for layer in layers:
        if groups and _shape_key(groups[-1][0]) == _shape_key(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return tuple(
        KernelGroup(
            layer_names=tuple(layer.name for layer in group),
            page_bytes=group[0].page_bytes,
            dtype=str(group[0].tensor.dtype),
            # A page may lie in kernel blocks: heads, tokens and content are those of one of them.
            shape=(num_blocks, *group[0].tensor.shape[1:]),
            attention_backend="+".join(_backend_names([group[0].name], vllm_config)),
        )
        for group in groups
    )


def _shape_key(layer: LayerPages) -> tuple[object, ...]:
    return (layer.page_bytes, layer.tensor.dtype, tuple(layer.tensor.shape))


def _block_size(kv_cache_config: KVCacheConfig) -> int:
    return int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)


def _format_name(vllm_config: VllmConfig, is_mla: bool) -> str:
    """Axes from the outermost in; `_X_` follows the layers where each has an array of its own."""
    if vllm_config.cache_config.kv_cache_layout is None:
        raise DeclinedError("vLLM has not resolved the physical order of its KV")
    order = vllm_config.cache_config.get_resolved_kv_cache_layout().name
    axes = [_FORMAT_AXES[axis] for axis in order if not (is_mla and axis == "H")]
    name = "_".join(axes)
    return name.replace("NL_", "NL_X_", 1) if axes[0] == "NL" else name


def _packing(names: Sequence[str], vllm_config: VllmConfig) -> str:
    """What else decides how bytes lie inside a page. On CPU the kernels lay keys out by instruction set."""
    parts = ["cpu", platform.machine(), _instruction_set(), *_backend_names(names, vllm_config)]
    return "/".join([*parts, *_layer_attributes(names, vllm_config, "isa")])


def _instruction_set() -> str:
    """The levels between which vLLM's CPU kernels choose; the dtype, block and head size choose the rest."""
    checks = {
        "amx": "_is_amx_tile_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "avx512": "_is_avx512_supported",
        "avx2": "_is_avx2_supported",
    }
    found = (level for level, check in checks.items() if getattr(torch.cpu, check, lambda: False)())
    return next(found, "baseline")


def _attention_layers(names: Sequence[str], vllm_config: VllmConfig) -> list[object]:
    context = vllm_config.compilation_config.static_forward_context
    return [context[name] for name in names if name in context]


def _backend_names(names: Sequence[str], vllm_config: VllmConfig) -> list[str]:
    layers = _attention_layers(names, vllm_config)
    return sorted({layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")})


def _layer_attributes(names: Sequence[str], vllm_config: VllmConfig, attribute: str) -> list[str]:
    layers = _attention_layers(names, vllm_config)
    return sorted({str(getattr(layer, attribute)) for layer in layers if hasattr(layer, attribute)})
