"""The pages of a rank as named arrays, for operators who look at them. Knows no tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class KVTensor:
    """`array` shares the memory of the pages; bfloat16 comes as uint16. `dtype` and `device` as they are printed."""

    array: np.ndarray[Any, np.dtype[Any]]
    dtype: str
    device: str

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape


@dataclass(frozen=True, slots=True)
class KVTensors:
    """By layer name. `tokens_per_block` None: told by the older layouts' shapes."""

    layers: Mapping[str, KVTensor]
    tokens_per_block: int | None = None
