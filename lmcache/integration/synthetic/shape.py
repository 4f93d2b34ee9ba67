"""The numbers of a model that decide the size of its KV, and the layout of pages that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import ConfigError

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
)
# Layers are arrays of their own, `[blocks, heads, tokens, content]`.
_FORMAT = "NL_X_NB_NH_BS_HS"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`head_size`: elements of one head's key, and as many of its value."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPE_BYTES)} (got {self.dtype!r})")
        if min(self.num_layers, self.num_kv_heads, self.head_size) < 1:
            raise ConfigError("layers, KV heads and head size must be at least 1")

    @property
    def layer_bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_size * DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_token(self) -> int:
        return self.num_layers * self.layer_bytes_per_token


def make_layout(shape: ModelShape, block_size: int, num_blocks: int) -> KVLayout:
    """All layers in one group."""
    group = KernelGroup(
        layer_names=tuple(f"layer.{number}" for number in range(shape.num_layers)),
        page_bytes=shape.layer_bytes_per_token * block_size,
        dtype=f"torch.{shape.dtype}",
        shape=(num_blocks, shape.num_kv_heads, block_size, 2 * shape.head_size),
        attention_backend="synthetic",
    )
    return KVLayout(block_size, num_blocks, (group,), _FORMAT, "synthetic")
