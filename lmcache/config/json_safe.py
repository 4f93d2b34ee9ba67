"""Settings as JSON that always encodes and never shows a secret. Knows no setting by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lmcache.config.redaction import REDACTED, looks_secret, without_user_info


def safe_asdict(config: Any) -> dict[str, object]:
    """The fields of a dataclass instance, nested ones too, made fit for JSON."""
    return _members({field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def make_json_safe(value: object) -> object:
    """Dataclasses and mappings become objects, other collections lists, the rest its `str()`
    where JSON has no form for it (a number that is not finite among them)."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return safe_asdict(value)
    if isinstance(value, Mapping):
        return _members(value)
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [make_json_safe(item) for item in value]
    return encodable(without_user_info(str(value)))


def _members(values: Mapping[Any, object]) -> dict[str, object]:
    return {encodable(str(name)): _shown(str(name), value) for name, value in values.items()}


def _shown(name: str, value: object) -> object:
    """Numbers and switches keep no secrets, and nothing is no secret."""
    may_be_secret = value is not None and value != "" and not isinstance(value, bool | int | float)
    return REDACTED if may_be_secret and looks_secret(name) else make_json_safe(value)


def encodable(text: str) -> str:
    """Text that came from undecodable bytes has halves of characters, which UTF-8 refuses."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
