"""Kinds of values: how a text, a YAML or a JSON value becomes one, and what it may be. Knows no key.

Sources differ in what they can write: an environment variable is always a text, perhaps with quotes
left around it, where YAML and JSON have lists and numbers. Every kind takes all of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_TRUE_WORDS = frozenset({"true", "1"})
_FALSE_WORDS = frozenset({"false", "0", "no", "off"})
_NULL_WORDS = frozenset({"", "null", "none"})
_INTEGER_DIGITS_MAX = 30
_DEPTH_MAX = 32


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """`parse` raises ValueError for what is no such value at all; `is_allowed` is its range.

    `allowed` says both in words, for messages and the documentation.
    """

    name: str
    allowed: str
    parse: Callable[[Any], T]
    is_allowed: Callable[[T], bool]


def _any(value: object) -> bool:
    return True


def unquoted(text: str) -> str:
    """The text without one pair of quotes around it, which shells and env files may leave."""
    stripped = text.strip()
    if len(stripped) >= 2 and stripped[0] == stripped[-1] and stripped[0] in "'\"":
        return stripped[1:-1]
    return text


def means_null(value: object) -> bool:
    """Quotes make a text of any word: `"none"` is one, `none` is not."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NULL_WORDS)


def _parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = unquoted(value).strip().lower() if isinstance(value, str) else str(value)
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise ValueError


def _parse_integer(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= _INTEGER_DIGITS_MAX:
        return int(unquoted(value))
    raise ValueError


def _parse_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    try:
        number = float(unquoted(value) if isinstance(value, str) else value)
    except OverflowError as error:  # an int beyond every float
        raise ValueError from error
    if not math.isfinite(number):
        raise ValueError
    return number


def _parse_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return unquoted(value) if isinstance(value, str) else str(value)


def _parse_items(value: object) -> list[object]:
    """A list, the JSON text of one, or texts between commas."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, str):
        text = unquoted(value)
        if text.lstrip().startswith("["):
            items = json.loads(text)
            return list(items)
        return [item for item in (part.strip() for part in text.split(",")) if item]
    return [value]


def _parse_texts(value: object) -> tuple[str, ...]:
    return tuple(_parse_text(item) for item in _parse_items(value))


def _parse_integers(value: object) -> tuple[int, ...]:
    return tuple(_parse_integer(item) for item in _parse_items(value))


def _parse_object(value: object) -> Mapping[str, object]:
    try:
        found = json.loads(unquoted(value)) if isinstance(value, str) else value
    except RecursionError as error:
        raise ValueError from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError
    return MappingProxyType({name: _copied(item, _DEPTH_MAX) for name, item in found.items()})


def _copied(value: object, depth: int) -> object:
    """A copy, since what the caller still holds must not change what everybody reads; not too deep to be shown."""
    if not depth:
        raise ValueError
    if isinstance(value, Mapping):
        return {name: _copied(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item, depth - 1) for item in value]
    return value


FLAG: Kind[bool] = Kind("bool", "true or false", _parse_flag, _any)
OBJECT: Kind[Mapping[str, object]] = Kind("object", "an object, or the JSON text of one", _parse_object, _any)


def whole(low: int = 0, high: int = 1 << 53) -> Kind[int]:
    bounds = f"from {low} to {high}" if high < 1 << 53 else f"of at least {low}"
    return Kind("int", f"a whole number {bounds}", _parse_integer, lambda value: low <= value <= high)


def number(low: float = 0.0, high: float = math.inf, is_low_open: bool = False) -> Kind[float]:
    """`is_low_open`: `low` itself is not allowed."""

    def is_allowed(value: float) -> bool:
        return (low < value if is_low_open else low <= value) and value <= high

    return Kind("float", f"a number{_bounds(low, high, is_low_open)}", _parse_number, is_allowed)


def _bounds(low: float, high: float, is_low_open: bool) -> str:
    lower, upper = f"{low:.12g}", f"{high:.12g}"
    if low == -math.inf:
        return "" if high == math.inf else f" of at most {upper}"
    if is_low_open:
        return f" above {lower}" + ("" if high == math.inf else f" and at most {upper}")
    return f" of at least {lower}" if high == math.inf else f" from {lower} to {upper}"


def text(allowed: str = "a text", is_allowed: Callable[[str], bool] = _any) -> Kind[str]:
    return Kind("str", allowed, _parse_text, is_allowed)


def texts(allowed: str = "a list of texts", is_each_allowed: Callable[[str], bool] = bool) -> Kind[tuple[str, ...]]:
    return Kind("list", allowed, _parse_texts, lambda items: all(is_each_allowed(item) for item in items))


def integers(low: int = 0, high: int = 1 << 20) -> Kind[tuple[int, ...]]:
    allowed = f"a list of whole numbers from {low} to {high}"
    return Kind("list[int]", allowed, _parse_integers, lambda items: all(low <= item <= high for item in items))


def choice(*values: str) -> Kind[str]:
    """One of `values`, in any case; kept as it is written here."""
    by_lower = {value.lower(): value for value in values}

    def parse(value: object) -> str:
        found = _parse_text(value).strip()
        return by_lower.get(found.lower(), found)

    return Kind("str", f"one of {', '.join(values)}", parse, lambda value: value in values)
