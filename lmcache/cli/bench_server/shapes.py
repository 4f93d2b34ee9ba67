"""Model shapes by name, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lmcache.integration.synthetic.shape import ModelShape

SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        "llama-8b": ModelShape(num_layers=32, num_kv_heads=8, head_size=128),
        "llama-70b": ModelShape(num_layers=80, num_kv_heads=8, head_size=128),
        "qwen-0.5b": ModelShape(num_layers=24, num_kv_heads=2, head_size=64),
        "qwen-7b": ModelShape(num_layers=28, num_kv_heads=4, head_size=128),
        "opt-125m": ModelShape(num_layers=12, num_kv_heads=12, head_size=64),
    }
)
DEFAULT_SHAPE = "llama-8b"
