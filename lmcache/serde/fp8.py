"""Lossy, half the size of 16-bit values: 8-bit floats (e4m3fn) under a scale per channel.

A value of at least 1/28672 of the largest magnitude in its channel keeps its size to within 6.3%;
a smaller one is off by at most 1/458752 of that magnitude. Both before it is rounded to its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lmcache.errors import ConfigError
from lmcache.serde.base import Serde
from lmcache.serde.floats import Floats
from lmcache.serde.scaled import Codes, ScaledSerde
from lmcache.serde.workers import MAX_WORKERS, check_max_workers, tell_of_max_workers

_E4M3 = "float8_e4m3fn"
_SIGN = 0x80
_NUM_FINITE = 0x7F  # magnitudes; the code after them is not a number


@dataclass(frozen=True, slots=True)
class Config:
    """`fp8_dtype`: float8_e4m3fn is the only one. `max_workers` has no effect."""

    fp8_dtype: str = _E4M3
    max_workers: int = MAX_WORKERS

    def __post_init__(self) -> None:
        if self.fp8_dtype != _E4M3:
            raise ConfigError(f"fp8_dtype must be {_E4M3!r} (got {self.fp8_dtype!r})")
        check_max_workers(self.max_workers)


def _magnitudes() -> Floats:
    """What the codes 0 to 0x7E stand for: 4 bits of exponent with bias 7, 3 bits of mantissa."""
    codes = np.arange(_NUM_FINITE)
    exponents, mantissas = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissas / 8, exponents - 7)
    subnormal = np.ldexp(mantissas / 8, -6)
    return np.where(exponents > 0, normal, subnormal).astype(np.float32)


def _decode_table() -> Floats:
    values = np.full(256, np.nan, np.float32)
    values[:_NUM_FINITE] = _magnitudes()
    values[_SIGN : _SIGN + _NUM_FINITE] = -values[:_NUM_FINITE]
    return values


def _encode_table() -> Codes:
    """The code of every 16-bit float, by its bits: the nearest one, the even one of two; too large is the largest."""
    magnitudes = _magnitudes().astype(np.float64)
    bits = np.arange(0x7C00, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float64)
    midpoints = (magnitudes[:-1] + magnitudes[1:]) / 2
    below, above = np.searchsorted(midpoints, values, "left"), np.searchsorted(midpoints, values, "right")
    codes = np.where(below % 2 == 0, below, above).astype(np.uint8)
    table = np.full(0x10000, _NUM_FINITE, np.uint8)
    table[:0x7C00] = codes
    table[0x8000 : 0x8000 + 0x7C00] = codes | _SIGN
    return table


class Fp8Serde(ScaledSerde):
    name: ClassVar[str] = "fp8"
    peak: ClassVar[float] = 448.0

    def __init__(self) -> None:
        self._codes = _encode_table()
        self._magnitudes = _decode_table()

    def _quantise(self, scaled: Floats) -> Codes:
        # By way of 16-bit floats, which have every code and every middle between two: tables do the rest.
        codes: Codes = self._codes.take(scaled.astype(np.float16).view(np.uint16))
        return codes

    def _values(self, codes: Codes) -> Floats:
        values: Floats = self._magnitudes.take(codes)
        return values


def make(config: Config) -> Serde:
    tell_of_max_workers(Fp8Serde.name, config.max_workers)
    return Fp8Serde()
