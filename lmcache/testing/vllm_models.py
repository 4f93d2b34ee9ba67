"""Models made on the spot: a config.json, and random weights from a seed where the shape is Llama's or DeepSeek's.

Other shapes run with the engine's dummy weights.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

# 4 layers, 2 KiB of KV a token: for tests.
TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}

# 12 layers, 12 KiB of KV a token: for the demo and the benchmarks.
SMALL_LLAMA: dict[str, Any] = {
    **TINY_LLAMA,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}

# MLA: one latent of 512 + 64 values a token and layer, the same on every tensor rank.
TINY_DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 2000,
    "max_position_embeddings": 16384,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}

# Five layers in six attend to the last 256 tokens only.
TINY_GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "sliding_window": 256,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 64,
    "torch_dtype": "bfloat16",
}

# Attention layers between short convolutions, whose state is kept as Mamba layers keep theirs.
TINY_LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "hidden_size": 256,
    "intermediate_size": 512,
    "block_ff_dim": 512,
    "block_dim": 256,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "norm_eps": 1e-5,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "conv_L_cache": 3,
    "conv_dim": 256,
    "conv_dim_out": 256,
    "conv_bias": False,
    "vocab_size": 2000,
    "max_position_embeddings": 16384,
    "torch_dtype": "bfloat16",
}

_MATRIX_STD = 0.06
_EMBEDDING_STD = 0.5


def write_model(folder: pathlib.Path, config: dict[str, Any]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def has_weights(config: dict[str, Any]) -> bool:
    return config["architectures"][0] in _ATTENTION_SHAPES


def write_weights(folder: pathlib.Path, config: dict[str, Any], seed: int) -> None:
    """Weights large enough that greedy output is not degenerate. Left as they are if they are there."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("seed") == str(seed):
                return
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _shapes(config):
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        std = _EMBEDDING_STD if "embed" in name else _MATRIX_STD
        tensors[name] = (torch.randn(shape, generator=random) * std).to(torch.bfloat16)
    save_file(tensors, path, {"format": "pt", "seed": str(seed)})


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    attention = _ATTENTION_SHAPES[config["architectures"][0]]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in attention(config):
            yield f"{prefix}self_attn.{name}.weight", shape
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _llama_attention(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "q_proj", (queries, hidden)
    yield "k_proj", (keys, hidden)
    yield "v_proj", (keys, hidden)
    yield "o_proj", (hidden, queries)


def _deepseek_attention(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Without a low rank for queries. Its layers are dense as far as `first_k_dense_replace` says."""
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotated, values = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield "q_proj", (heads * (plain + rotated), hidden)
    yield "kv_a_proj_with_mqa", (latent + rotated, hidden)
    yield "kv_a_layernorm", (latent,)
    yield "kv_b_proj", (heads * (plain + values), latent)
    yield "o_proj", (hidden, heads * values)


_ATTENTION_SHAPES = {"LlamaForCausalLM": _llama_attention, "DeepseekV2ForCausalLM": _deepseek_attention}


def write_adapter(folder: pathlib.Path, config: dict[str, Any], seed: int, rank: int = 8) -> pathlib.Path:
    """A LoRA adapter on the attention of a Llama, strong enough to change its output."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _shapes(config):
        if "q_proj" in name or "v_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn((rank, shape[1]), generator=random) * _MATRIX_STD
            tensors[f"{stem}.lora_B.weight"] = torch.randn((shape[0], rank), generator=random) * _MATRIX_STD
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"], "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
