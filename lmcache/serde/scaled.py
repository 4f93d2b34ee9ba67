"""Lossy serdes: one byte per value, under a scale per channel. What a byte means is the subclass's.

A channel is what lies at one place of a page but for its token: the values of all tokens of the
object there share a scale. Where no axis of a page counts tokens, its last axis is the channel.
Nothing is assumed of what a page's values mean.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError
from lmcache.serde.base import Encoded, rows, whole_numbers
from lmcache.serde.floats import STORED_AS, Floats, from_float32, to_float32
from lmcache.serde.segments import Segment, parse_layout

Codes = npt.NDArray[np.uint8]
_SCALE_BYTES = 4
_DTYPES = list(STORED_AS)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one segment is coded: `[layers, blocks, *shape]` with scales over `reduced` axes of a layer."""

    dtype: str
    num_layers: int
    layer_shape: tuple[int, ...]
    reduced: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """Per layer."""
        return math.prod(self.layer_shape)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.reduced else size for axis, size in enumerate(self.layer_shape))

    @property
    def layer_code_bytes(self) -> int:
        return math.prod(self.scale_shape) * _SCALE_BYTES + self.num_values

    @property
    def layer_data_bytes(self) -> int:
        return self.num_values * STORED_AS[self.dtype].itemsize

    def as_row(self) -> list[object]:
        return [_DTYPES.index(self.dtype), self.num_layers, list(self.layer_shape), list(self.reduced)]


class ScaledSerde(abc.ABC):
    """`peak`: the largest magnitude that a code can say; every channel's largest value is scaled to it."""

    name: ClassVar[str]
    is_lossy: ClassVar[bool] = True
    peak: ClassVar[float]

    @abc.abstractmethod
    def _quantise(self, scaled: Floats) -> Codes:
        """The nearest codes of values within +-peak. `scaled` may be overwritten."""

    @abc.abstractmethod
    def _values(self, codes: Codes) -> Floats:
        """What codes stand for, in memory of its own."""

    def encode(self, data: memoryview, layout: str, key: ObjectKey) -> Encoded | None:
        segments = parse_layout(layout, len(data))
        if not segments or not all(segment.dtype in STORED_AS and segment.is_dense for segment in segments):
            return None
        plans = [_plan(segment) for segment in segments]
        payload = bytearray(sum(plan.num_layers * plan.layer_code_bytes for plan in plans))
        if len(payload) >= len(data):
            return None
        given, coded = data, memoryview(payload)
        for plan in plans:
            for _ in range(plan.num_layers):
                if not self._encode_layer(plan, given[: plan.layer_data_bytes], coded[: plan.layer_code_bytes]):
                    return None
                given, coded = given[plan.layer_data_bytes :], coded[plan.layer_code_bytes :]
        return Encoded(payload, {"plans": [plan.as_row() for plan in plans]})

    def _encode_layer(self, plan: _Plan, given: memoryview, coded: memoryview) -> bool:
        """False: some value is not finite."""
        stored = np.frombuffer(given, STORED_AS[plan.dtype]).reshape(plan.layer_shape)
        values = to_float32(stored, plan.dtype)
        peaks = np.abs(values).max(axis=plan.reduced, keepdims=True)
        if not np.isfinite(peaks).all():
            return False
        scales = peaks / np.float32(self.peak)
        scales[scales == 0] = 1  # all zero, or too small for a scale: coded as zeros
        np.divide(values, scales, out=values)
        np.clip(values, -self.peak, self.peak, out=values)
        num_scale_bytes = scales.nbytes
        np.frombuffer(coded[:num_scale_bytes], "<f4")[:] = scales.reshape(-1)
        np.frombuffer(coded[num_scale_bytes:], np.uint8)[:] = self._quantise(values).reshape(-1)
        return True

    def decode(self, payload: memoryview, parameters: Mapping[str, object], target: memoryview, key: ObjectKey) -> None:
        plans = [_plan_of_row(row) for row in rows(parameters.get("plans"))]
        num_code_bytes = sum(plan.num_layers * plan.layer_code_bytes for plan in plans)
        num_data_bytes = sum(plan.num_layers * plan.layer_data_bytes for plan in plans)
        if (num_code_bytes, num_data_bytes) != (len(payload), len(target)):
            raise CorruptObjectError("the plans of its serde do not add up")
        for plan in plans:
            for _ in range(plan.num_layers):
                self._decode_layer(plan, payload[: plan.layer_code_bytes], target[: plan.layer_data_bytes])
                payload, target = payload[plan.layer_code_bytes :], target[plan.layer_data_bytes :]

    def _decode_layer(self, plan: _Plan, coded: memoryview, target: memoryview) -> None:
        num_scale_bytes = math.prod(plan.scale_shape) * _SCALE_BYTES
        scales = np.frombuffer(coded[:num_scale_bytes], "<f4").reshape(plan.scale_shape)
        codes = np.frombuffer(coded[num_scale_bytes:], np.uint8).reshape(plan.layer_shape)
        values = self._values(codes)
        values *= scales
        filled = np.frombuffer(target, STORED_AS[plan.dtype]).reshape(plan.layer_shape)
        from_float32(values, plan.dtype, filled)

    def report(self) -> dict[str, object]:
        return {"type": self.name, "is_lossy": True}


def _plan(segment: Segment) -> _Plan:
    shape = segment.shape
    # Axis 0 of a layer is its blocks.
    token_axes = [axis for axis, size in enumerate(shape[:-1], start=1) if size == segment.block_size]
    reduced = (0, token_axes[0]) if token_axes else tuple(range(len(shape)))
    return _Plan(segment.dtype, segment.num_layers, (segment.num_blocks, *shape), reduced)


def _plan_of_row(row: object) -> _Plan:
    """Raises CorruptObjectError."""
    fields = rows(row)
    if len(fields) != 4:
        raise CorruptObjectError("a plan of its serde is damaged")
    dtype_number, num_layers = whole_numbers(fields[:2], 2)
    layer_shape, reduced = whole_numbers(fields[2]), whole_numbers(fields[3])
    is_sane = dtype_number < len(_DTYPES) and layer_shape and all(axis < len(layer_shape) for axis in reduced)
    if not is_sane:
        raise CorruptObjectError("a plan of its serde is damaged")
    return _Plan(_DTYPES[dtype_number], num_layers, tuple(layer_shape), tuple(reduced))
