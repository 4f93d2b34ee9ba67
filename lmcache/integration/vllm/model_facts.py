"""What decides the values in an engine's KV, as plain JSON values, equal in every process and on every host.

What decides where the bytes lie is `layout.describe_layout`'s; what differs from request to
request is `chunk_extras`'. Two engines that differ in a fact never share a key.

Left out on purpose: what changes values by rounding only, as vLLM's own prefix cache mixes
those too (batch shapes, CUDA graphs and `enforce_eager`, chunked prefill, expert and data
parallelism: each data-parallel rank computes whole attention layers for its own requests, and
experts on other devices compute the same sums); what acts after the last layer (sampling,
logprobs); what acts before the tokens (tokenizer, chat template); sizes, ports and paths.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import vllm
from vllm import envs
from vllm.platforms import current_platform

from lmcache.errors import DeclinedError
from lmcache.integration.vllm.weights import weights_identity

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

_MODEL_FIELDS = (
    "model",
    "revision",
    "code_revision",
    "trust_remote_code",
    "dtype",
    "quantization",
    "quantization_config",
    "hf_overrides",
    "model_impl",
    "model_class_overrides",
    "convert",
    "disable_sliding_window",
)
_CACHE_FIELDS = ("cache_dtype", "kv_cache_dtype_skip_layers", "calculate_kv_scales", "kv_sharing_fast_prefill")
# Which heads and layers a rank holds, and which tokens.
_PARALLEL_FIELDS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
    "cp_kv_cache_interleave_size",
)
# Not rounding alone: some of these quantize activations.
_KERNEL_FIELDS = ("moe_backend", "linear_backend", "linear_backend_per_quant")
_ENVIRONMENT = (
    "VLLM_CPU_INT4_W4A8",
    "VLLM_MARLIN_INPUT_DTYPE",
    "VLLM_USE_DEEP_GEMM_E8M0",
    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER",
    "VLLM_MLA_DISABLE",
)
_MULTIMODAL_FIELDS = (
    "language_model_only",
    "enable_mm_embeds",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "mm_device_do_normalize",
    "mm_encoder_attn_backend",
    "mm_encoder_attn_dtype",
    "mm_encoder_fp8_scale_path",
    "mm_encoder_fp8_scale_save_margin",
    "interleave_mm_strings",
    "video_pruning_rate",
    "video_pruning_method",
    "allow_missing_mm_embeddings",
)
_LORA_FIELDS = (
    "lora_dtype",
    "target_modules",
    "default_mm_loras",
    "enable_tower_connector_lora",
    "enable_mixed_moe_lora_format",
    "enable_moe_shared_loras",
)
# Where a config came from and who wrote it, not what it says.
_VOLATILE_CONFIG_KEYS = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})
# Rotary tables of these types hold the same angles for a position whatever the longest prompt is.
_LENGTH_FREE_ROPES = frozenset(
    {"default", "linear", "ntk", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "proportional", "mrope"}
)
_ROPE_KEYS = ("rope_parameters", "rope_scaling")


def model_facts(vllm_config: VllmConfig, model_version: str | None) -> dict[str, object]:
    """The facts of one engine. `model_version`, set by the user, stands for the weights alone.

    Reads the weight files: call it once, at start, before they can be replaced. Raises
    DeclinedError where the model cannot be identified.
    """
    model = vllm_config.model_config
    hf_config = _without_volatile(plain(model.hf_config))
    return {
        # An upgrade may change kernels, page packing or a model's code: it starts cold rather than wrong.
        "vllm": vllm.__version__,
        "device": current_platform.device_type,
        "model": _fields(model, _MODEL_FIELDS),
        "hf_config": hf_config,
        "max_model_len": model.max_model_len if depends_on_max_model_len(model, hf_config) else None,
        "weights": {"model_version": model_version} if model_version else _weights(vllm_config, hf_config),
        "cache": _fields(vllm_config.cache_config, _CACHE_FIELDS),
        "parallel": _fields(vllm_config.parallel_config, _PARALLEL_FIELDS),
        "attention": plain(vllm_config.attention_config),
        "kernels": _fields(vllm_config.kernel_config, _KERNEL_FIELDS),
        "environment": {name: plain(getattr(envs, name, None)) for name in _ENVIRONMENT},
        "multimodal": _fields(model.multimodal_config, _MULTIMODAL_FIELDS),
        "lora": _fields(vllm_config.lora_config, _LORA_FIELDS),
        "speculative": _speculative(vllm_config),
        "additional": [plain(vllm_config.additional_config), plain(getattr(vllm_config, "engram_config", None))],
    }


def depends_on_max_model_len(model: ModelConfig, hf_config: object) -> bool:
    """Whether the longest allowed prompt changes the KV of short ones.

    LongRoPE picks its factors by it, Llama 4 its attention temperature; of rope types and code
    we do not know we assume it.
    """
    if model.trust_remote_code or "llama4" in str(getattr(model.hf_config, "model_type", "")):
        return True
    return not rope_types(hf_config) <= _LENGTH_FREE_ROPES


def rope_types(config: object, is_rope: bool = False) -> set[str]:
    """Every rotary type named anywhere in a model's config."""
    if isinstance(config, list):
        return {name for item in config for name in rope_types(item)}
    if not isinstance(config, dict):
        return set()
    found: set[str] = set()
    for key, value in config.items():
        if key == "rope_type" or (is_rope and key == "type"):
            found.add(str(value))
        else:
            found |= rope_types(value, is_rope or key in _ROPE_KEYS)
    return found


def plain(value: object) -> object:
    """`value` as JSON that does not depend on the process: no addresses, no set order, no NaN."""
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else f"float:{value}"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(plain(item)) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _plain_object(value)


def _plain_object(value: object) -> object:
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):  # a Hugging Face config
        return plain(to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class or function, such as `hf_overrides`: what it did shows in the config
        return f"{getattr(value, '__module__', '')}.{name}"
    raise DeclinedError(f"lmcache cannot tell engines apart by a {type(value).__name__} in vLLM's configuration")


def _fields(config: object, names: tuple[str, ...]) -> object:
    """Fields another version of vLLM lacks count as unset."""
    return None if config is None else {name: plain(getattr(config, name, None)) for name in names}


def _without_volatile(config: object) -> object:
    if isinstance(config, dict):
        return {key: _without_volatile(item) for key, item in config.items() if key not in _VOLATILE_CONFIG_KEYS}
    if isinstance(config, list):
        return [_without_volatile(item) for item in config]
    return config


def _weights(vllm_config: VllmConfig, hf_config: object) -> dict[str, object]:
    model, load = vllm_config.model_config, vllm_config.load_config
    return weights_identity(
        # Set where vLLM keeps the weights apart from the config, as for object stores.
        model_path=model.model_weights or model.model,
        model_name=model.model,
        load_format=str(plain(load.load_format)),
        revision=model.revision,
        seed=model.seed,
        download_dir=load.download_dir,
        has_own_code=isinstance(hf_config, dict) and bool(hf_config.get("auto_map")),
    )


def _speculative(vllm_config: VllmConfig) -> object:
    """Methods whose draft has KV of its own are declined; the others leave the model's KV as it is."""
    config = vllm_config.speculative_config
    return None if config is None else {"method": config.method, "model": config.model, "revision": config.revision}
