"""Keys of objects as the HTTP API writes them, as lines of JSON and as arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

KeyFields = dict[str, Any]


def key_of_line(line: str, number: int) -> KeyFields:
    """From a line of `lmcache keys --json`, or from a key alone. Raises UsageError."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise click.UsageError(
            f"line {number} is not JSON ({error}): one object a line, as lmcache keys --json prints"
        ) from None
    key = found.get("key", found) if isinstance(found, dict) else None
    if not isinstance(key, dict) or "chunk_hash_hex" not in key:
        raise click.UsageError(
            f"line {number} has no chunk_hash_hex: one object a line, as lmcache keys --json prints"
        ) from None
    return key


def keys_of_lines(lines: Iterable[str]) -> Iterator[KeyFields]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield key_of_line(line, number)


def check_chunk_hash(text: str) -> str:
    try:
        bytes.fromhex(text)
    except ValueError:
        raise click.UsageError(f"a chunk hash is written in hexadecimal digits (got {text!r})") from None
    return text
