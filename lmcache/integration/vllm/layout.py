"""vLLM's registered KV tensors in our terms: a `KVLayout`, and the engine's own memory as regions of whole pages.

vLLM hands over one `[blocks, heads, tokens, content]` view per layer, all views of one
allocation in any physical order. We only find where pages lie; what is in them is opaque.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import DeclinedError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

# Methods whose drafts come from no KV of their own. A draft model's KV at a chunk's last token
# depends on the token after it, which the chunk's key does not name.
_DRAFTS_WITHOUT_KV = frozenset({"ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator"})
_FORMAT_AXES = {"L": "NL", "B": "NB", "H": "NH", "N": "BS", "C": "HS"}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's pages: `num_rows` dense arrays `[blocks, row_bytes]`, `row_stride` bytes apart.

    One row, unless the physical order puts heads outside of blocks. All positions in bytes
    from the start of the storage.
    """

    name: str
    tensor: torch.Tensor
    offset: int
    num_rows: int
    row_bytes: int
    row_stride: int
    block_stride: int

    @property
    def page_bytes(self) -> int:
        return self.num_rows * self.row_bytes


def unsupported_reason(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig | None) -> str | None:
    """Why this engine's KV cannot be cached, in one line; None where it can."""
    return _config_reason(vllm_config) or _parallel_reason(vllm_config) or _cache_reason(kv_cache_config)


def _config_reason(vllm_config: VllmConfig) -> str | None:
    model, speculative = vllm_config.model_config, vllm_config.speculative_config
    if model.is_encoder_decoder:
        return "encoder-decoder models are not supported: their KV depends on more than the prompt's prefix"
    if vllm_config.attention_config.use_non_causal or vllm_config.diffusion_config is not None:
        return "models that attend to later tokens are not supported: a prefix does not decide its KV"
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
    is_block_outermost = layers[0].block_stride > layers[0].row_bytes
    regions = _packed_region(layers, num_blocks) if is_block_outermost else _dense_regions(layers, num_blocks)
    is_mla = bool(vllm_config.model_config.use_mla)
    layout = KVLayout(
        block_size=_block_size(kv_cache_config),
        num_blocks=num_blocks,
        groups=_kernel_groups(layers, num_blocks, vllm_config),
        format_name=_format_name(vllm_config, is_mla),
        packing=_packing([layer.name for layer in layers], vllm_config),
        is_mla=is_mla,
    )
    return layout, regions


def _layers(kv_caches: Mapping[str, torch.Tensor], kv_cache_config: KVCacheConfig) -> list[_Layer]:
    """Layers that own memory, in the order vLLM laid them out: names beyond those share another's KV."""
    names = [name for tensor in kv_cache_config.kv_cache_tensors for name in tensor.layers]
    missing = [name for name in names if name not in kv_caches]
    if missing or not names:
        raise DeclinedError(f"vLLM registered no KV tensor for {', '.join(missing) or 'any layer'}")
    owners = {kv_caches[name].data_ptr() for name in names}
    strays = [name for name in kv_caches if name not in names and kv_caches[name].data_ptr() not in owners]
    if strays:
        raise DeclinedError(f"vLLM registered KV of {', '.join(strays)} outside of its cache configuration")
    return [_layer(name, kv_caches[name], kv_cache_config.num_blocks) for name in names]


def _layer(name: str, tensor: torch.Tensor, num_blocks: int) -> _Layer:
    if tensor.device.type != "cpu":
        raise DeclinedError(f"KV on the device {tensor.device.type!r} is not supported, only on 'cpu'")
    if tensor.ndim != 4 or tensor.shape[0] % num_blocks:
        raise DeclinedError(f"KV of {name} has the shape {tuple(tensor.shape)}, not [{num_blocks} blocks, heads, ...]")
    # The engine's kernels may cut a block into several of theirs, which then lie one after the other.
    ratio = tensor.shape[0] // num_blocks
    item = tensor.element_size()
    kernel, head, token, content = (stride * item for stride in tensor.stride())
    block_stride = kernel * ratio
    _, heads, tokens, contents = tensor.shape
    is_head_outside = heads > 1 and head > block_stride
    inside = [(ratio, kernel), (tokens, token), (contents, content)]
    if not is_head_outside:
        inside.append((heads, head))
    row_bytes = math.prod(length for length, _ in inside) * item
    if block_stride == row_bytes:
        _check_dense(name, inside, item)
    return _Layer(
        name=name,
        tensor=tensor,
        offset=tensor.storage_offset() * item,
        num_rows=heads if is_head_outside else 1,
        row_bytes=row_bytes,
        row_stride=head if is_head_outside else 0,
        block_stride=block_stride,
    )


def _check_dense(name: str, axes: Iterable[tuple[int, int]], item: int) -> None:
    """The axes, in whatever order, fill one run of bytes."""
    size = item
    for length, stride in sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: axis[1]):
        if stride != size:
            raise DeclinedError(f"a block of {name} does not lie in one piece: a stride of {stride} bytes, not {size}")
        size *= length


def _dense_regions(layers: Sequence[_Layer], num_blocks: int) -> list[np.ndarray]:
    """One region per run of layers that follow each other in memory without a gap."""
    runs: list[tuple[_Layer, list[int]]] = []
    for layer in layers:
        if layer.block_stride != layer.row_bytes:
            raise DeclinedError(
                f"pages of {layer.name} hold {layer.row_bytes} bytes and start every {layer.block_stride}"
            )
        for row in range(layer.num_rows):
            _append_row(runs, layer, layer.offset + row * layer.row_stride, layer.row_bytes * num_blocks)
    return [_region(first, offsets[0], len(offsets), num_blocks, first.row_bytes) for first, offsets in runs]


def _append_row(runs: list[tuple[_Layer, list[int]]], layer: _Layer, offset: int, row_bytes: int) -> None:
    if runs:
        first, offsets = runs[-1]
        is_same_memory = first.tensor.untyped_storage().data_ptr() == layer.tensor.untyped_storage().data_ptr()
        if is_same_memory and first.row_bytes == layer.row_bytes and offsets[-1] + row_bytes == offset:
            offsets.append(offset)
            return
    runs.append((layer, [offset]))


def _packed_region(layers: Sequence[_Layer], num_blocks: int) -> list[np.ndarray]:
    """One region of one row: a block holds the pages of all layers, in whatever order, which must fill it."""
    first = min(layers, key=lambda layer: layer.offset)
    block_bytes = first.block_stride
    total = sum(layer.page_bytes for layer in layers)
    is_together = all(
        layer.tensor.untyped_storage().data_ptr() == first.tensor.untyped_storage().data_ptr()
        and layer.block_stride == block_bytes
        and layer.offset < first.offset + block_bytes
        for layer in layers
    )
    if total != block_bytes or not is_together:
        raise DeclinedError(f"pages of all layers ({total} bytes) do not fill a block ({block_bytes} bytes)")
    return [_region(first, first.offset, 1, num_blocks, block_bytes)]


def _region(layer: _Layer, offset: int, num_rows: int, num_blocks: int, page_bytes: int) -> np.ndarray:
    storage = layer.tensor.untyped_storage()
    if offset + num_rows * num_blocks * page_bytes > storage.nbytes():
        raise DeclinedError(f"pages of {layer.name} reach beyond their allocation")
    raw = torch.empty(0, dtype=torch.uint8)
    raw.set_(storage, offset, (num_rows, num_blocks, page_bytes))
    region: np.ndarray = raw.numpy()
    return region


def _kernel_groups(layers: Sequence[_Layer], num_blocks: int, vllm_config: VllmConfig) -> tuple[KernelGroup, ...]:
    """Neighbours of one shape together: the order of layers is the order of their pages in a chunk."""
    groups: list[list[_Layer]] = []
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


def _shape_key(layer: _Layer) -> tuple[object, ...]:
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
