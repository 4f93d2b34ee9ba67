"""Lossy, half the size of 16-bit values: whole numbers from -127 to 127 under a scale per channel.

A value is off by at most 1/254 of the largest magnitude in its channel, before it is rounded to its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lmcache.serde.base import Serde
from lmcache.serde.floats import Floats
from lmcache.serde.scaled import Codes, ScaledSerde


@dataclass(frozen=True, slots=True)
class Config:
    """Nothing to set."""


class Int8Serde(ScaledSerde):
    name: ClassVar[str] = "int8"
    peak: ClassVar[float] = 127.0

    def _quantise(self, scaled: Floats) -> Codes:
        return np.rint(scaled, out=scaled).astype(np.int8).view(np.uint8)

    def _values(self, codes: Codes) -> Floats:
        return codes.view(np.int8).astype(np.float32)


def make(config: Config) -> Serde:
    return Int8Serde()
