"""What a layout text says of an object's bytes: which stretch holds values of which type and shape."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int16": 2, "int32": 4}


@dataclass(frozen=True, slots=True)
class Segment:
    """An array `[layers, blocks, *shape]` of `dtype`, without padding. `block_size`: tokens per block."""

    dtype: str
    num_layers: int
    num_blocks: int
    shape: tuple[int, ...]
    page_bytes: int
    block_size: int

    @property
    def num_bytes(self) -> int:
        return self.num_layers * self.num_blocks * self.page_bytes

    @property
    def item_bytes(self) -> int:
        """Bytes per value; 1 where the type is not known."""
        return ITEM_BYTES.get(self.dtype, 1)

    @property
    def is_dense(self) -> bool:
        """Whether a page is exactly its values."""
        return bool(self.shape) and math.prod(self.shape) * self.item_bytes == self.page_bytes


def parse_layout(layout: str, num_bytes: int) -> list[Segment] | None:
    """The segments of an object of that many bytes; None where the text does not describe it."""
    try:
        described = json.loads(layout)
        block_size = int(described["block_size"])
        groups = [_parse_group(group) for group in described["groups"]]
    except (ValueError, TypeError, KeyError):
        return None
    block_bytes = sum(num_layers * page_bytes for _, num_layers, _, page_bytes in groups)
    if block_bytes <= 0 or num_bytes % block_bytes or any(min(group[1], group[3]) <= 0 for group in groups):
        return None
    num_blocks = num_bytes // block_bytes
    return [
        Segment(dtype, num_layers, num_blocks, shape, page_bytes, block_size)
        for dtype, num_layers, shape, page_bytes in groups
    ]


def _parse_group(group: dict[str, object]) -> tuple[str, int, tuple[int, ...], int]:
    dtype, shape, num_layers, page_bytes = group["dtype"], group["shape"], group["layers"], group["page"]
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError("not a shape")
    if not isinstance(dtype, str) or not isinstance(num_layers, int) or not isinstance(page_bytes, int):
        raise ValueError("not a group")
    return dtype.removeprefix("torch."), num_layers, tuple(shape), page_bytes
