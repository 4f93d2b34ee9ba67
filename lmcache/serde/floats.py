"""KV values as float32 and back, in numpy alone: its casts release the interpreter, those of added types do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

STORED_AS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}


def to_float32(values: npt.NDArray[np.generic], dtype: str) -> Floats:
    """`values` has the type `STORED_AS[dtype]`. Exact."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: Floats, dtype: str, target: npt.NDArray[np.generic]) -> None:
    """Finite values, rounded to the nearest of `dtype`, into `target` of type `STORED_AS[dtype]`."""
    if dtype != "bfloat16":
        np.copyto(target, values, casting="same_kind")
        return
    bits = np.ascontiguousarray(values).view(np.uint32)
    to_even = (bits >> np.uint32(16)) & np.uint32(1)
    to_even += np.uint32(0x7FFF)
    to_even += bits
    to_even >>= np.uint32(16)
    np.copyto(target, to_even, casting="unsafe")
