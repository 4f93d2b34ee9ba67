"""One key of the configuration: its kind, default, mark and description. Knows no key by name.

Keys are declared as class attributes, `chunk_size: int = setting(...)`, so that every key has one line
that holds all about it and readers have its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lmcache.config.engine.kinds import Kind, means_null
from lmcache.config.json_safe import make_json_safe

T = TypeVar("T")

_SHOWN_CHARACTERS_MAX = 200


class UnparsableError(ValueError):
    """No such value at all: a word for a number, a list for a switch."""


class OutOfRangeError(ValueError):
    """A value of the right kind that is not allowed."""


@dataclass(frozen=True, slots=True)
class Definition:
    """`mutable` False: fixed at the start. Null is a value where `is_nullable`.

    `no_effect` and `refusal` are the reason why a value that asks for something does nothing here,
    or cannot be accepted; `refused_values` refuses single ones. Empty: the key does what it says.
    """

    kind: Kind[Any]
    default: object
    description: str
    mutable: bool = True
    is_nullable: bool = False
    no_effect: str = ""
    refusal: str = ""
    refused_values: Mapping[str, str] | None = None

    def convert(self, name: str, value: object) -> object:
        """The value as it is kept. Raises UnparsableError, OutOfRangeError."""
        if self.is_nullable and means_null(value):
            return None
        try:
            found = self.kind.parse(value)
        except OutOfRangeError:
            raise
        except (ValueError, TypeError) as error:
            raise UnparsableError(self._complaint(name, value)) from error
        refusal = self.refusal_of(found)
        if refusal:
            raise OutOfRangeError(f"{name}: {shown(name, found)} {refusal}")
        if not self.kind.is_allowed(found):
            raise OutOfRangeError(self._complaint(name, value))
        return found

    def refusal_of(self, value: object) -> str:
        """Why a converted value cannot be accepted, or nothing."""
        if self.refused_values and isinstance(value, str) and value in self.refused_values:
            return self.refused_values[value]
        return self.refusal if self.asks(value) else ""

    def asks(self, value: object) -> bool:
        """Whether the value wants something done: neither nothing, nor what holds anyway."""
        return value not in (None, "", ()) and value != self.default

    def _complaint(self, name: str, value: object) -> str:
        null = ", or null" if self.is_nullable else ""
        return f"{name} must be {self.kind.allowed}{null} (got {shown(name, value)})"


def shown(name: str, value: object) -> str:
    """A value as messages show it: no secrets, no end of it."""
    try:
        safe = cast("dict[str, object]", make_json_safe({name: value}))
        text = repr(next(iter(safe.values())))
    except RecursionError:
        return "something that is nested too deeply"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."


class FrozenValues:
    """An object whose attributes are the keys that its class declares. Nobody assigns to them."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(getattr(type(self), name, None), Definition):
            raise AttributeError(f"{name} cannot be assigned to")
        super().__setattr__(name, value)


def setting(kind: Kind[T], default: T, description: str, **marks: Any) -> T:
    """Declares a key. To type checkers it is the value that instances have."""
    return cast("T", Definition(kind, default, description, **marks))


def optional(kind: Kind[T], description: str, **marks: Any) -> T | None:
    """Declares a key that may be null, and is by default."""
    return cast("T | None", Definition(kind, None, description, is_nullable=True, **marks))


def collect(holder: type) -> dict[str, Definition]:
    """The keys that a class and its bases declare, in the order of the bases."""
    return {
        name: value
        for base in holder.__mro__
        for name, value in vars(base).items()
        if isinstance(value, Definition)
    }  # fmt: skip
