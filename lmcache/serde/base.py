"""What a serde is: bytes to bytes, one object at a time. Knows no backend.

Serdes are applied one after another; each sees what the one before it made. A module of this
folder with `Config` and `make` is one, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lmcache.core.keys import ObjectKey
from lmcache.errors import CorruptObjectError


@dataclass(frozen=True, slots=True)
class Encoded:
    """`parameters`: what decoding needs to know beside the payload; plain values that JSON can hold."""

    payload: bytes | bytearray | memoryview
    parameters: Mapping[str, object]


class Serde(Protocol):
    """Thread-safe. Long work releases the interpreter where its library can."""

    name: ClassVar[str]
    is_lossy: ClassVar[bool]

    def encode(self, data: memoryview, layout: str, key: ObjectKey) -> Encoded | None:
        """None: it cannot, or it is not worth it; the object is then stored as it is. `layout` is
        what `KVLayout.describe` says of the bytes, or empty."""

    def decode(self, payload: memoryview, parameters: Mapping[str, object], target: memoryview, key: ObjectKey) -> None:
        """Fill `target`, which has the length of what was encoded. Raises CorruptObjectError."""

    def report(self) -> dict[str, object]:
        """Its name and settings, for operators. No secrets."""


def whole_numbers(value: object, num_expected: int | None = None) -> list[int]:
    """A parameter that must be a list of whole numbers. Raises CorruptObjectError."""
    if not isinstance(value, list) or num_expected not in (None, len(value)):
        raise CorruptObjectError("a parameter of its serde is damaged")
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
        raise CorruptObjectError("a parameter of its serde is damaged")
    return value


def rows(value: object) -> list[object]:
    """A parameter that must be a list. Raises CorruptObjectError."""
    if not isinstance(value, list):
        raise CorruptObjectError("a parameter of its serde is damaged")
    return value
