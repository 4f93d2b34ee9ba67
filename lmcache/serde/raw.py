"""The bytes as they are: the least a serde must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError
from lmcache.serde.base import Encoded, Serde


@dataclass(frozen=True, slots=True)
class Config:
    """Nothing to set."""


class RawSerde:
    name: ClassVar[str] = "raw"
    is_lossy: ClassVar[bool] = False

    def encode(self, data: memoryview, layout: str, key: ObjectKey) -> Encoded | None:
        return Encoded(data, {})

    def decode(self, payload: memoryview, parameters: Mapping[str, object], target: memoryview, key: ObjectKey) -> None:
        if len(payload) != len(target):
            raise CorruptObjectError(f"it has {len(payload)} bytes where {len(target)} were expected")
        target[:] = payload

    def report(self) -> dict[str, object]:
        return {"type": self.name}


def make(config: Config) -> Serde:
    return RawSerde()
