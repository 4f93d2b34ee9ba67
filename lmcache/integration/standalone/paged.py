"""Pages of KV without a model: bytes that follow from a seed, in the shapes that vLLM registers. Knows no engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache.core.layout import KVLayout
from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.errors import ConfigError
from lmcache.integration.synthetic.shape import DTYPE_BYTES, ModelShape, make_layout

# What numpy has no name for comes as bits of the same size.
_NUMPY_TYPES = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_FILL_BYTES = 16 << 20


class PagedCache:
    """`pages`: `[layers, blocks, page bytes]`, one region of a copier. Whoever fills them must not share them
    with a store or a retrieve that is under way, if its bytes matter."""

    def __init__(self, shape: ModelShape, block_size: int, num_blocks: int, seed: int) -> None:
        """Raises ConfigError where this machine has no memory for it."""
        self.shape = shape
        self.layout: KVLayout = make_layout(shape, block_size, num_blocks)
        page_bytes = self.layout.groups[0].page_bytes
        try:
            self.pages: np.ndarray[Any, np.dtype[np.uint8]] = np.empty(
                (shape.num_layers, num_blocks, page_bytes), dtype=np.uint8
            )
        except (MemoryError, ValueError) as error:
            raise ConfigError(f"pages of {num_blocks} blocks find no memory: {error}") from error
        self.fill(seed)

    @property
    def size_bytes(self) -> int:
        return int(self.pages.nbytes)

    @property
    def num_tokens(self) -> int:
        return self.layout.num_blocks * self.layout.block_size

    def fill(self, seed: int) -> None:
        """Equal seeds give equal bytes, whatever they are filled into."""
        random = np.random.default_rng(seed)
        flat = self.pages.reshape(-1)
        for start in range(0, len(flat), _FILL_BYTES):
            part = flat[start : start + _FILL_BYTES]
            part[:] = np.frombuffer(random.bytes(len(part)), dtype=np.uint8)
        self.seed = seed

    def tensors(self) -> KVTensors:
        """Layer by layer `[blocks, heads, tokens, content]`, over the same memory."""
        shape, block_size = self.shape, self.layout.block_size
        dtype = np.dtype(_NUMPY_TYPES.get(shape.dtype, shape.dtype))
        assert dtype.itemsize == DTYPE_BYTES[shape.dtype]
        axes = (self.layout.num_blocks, shape.num_kv_heads, block_size, 2 * shape.head_size)
        layers = {
            name: KVTensor(self.pages[number].view(dtype).reshape(axes), f"torch.{shape.dtype}", "cpu")
            for number, name in enumerate(self.layout.groups[0].layer_names)
        }
        return KVTensors(layers, block_size)
