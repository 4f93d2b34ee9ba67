"""Byte sizes as people write and read them. Units are powers of 1024."""

from __future__ import annotations

import re
from fractions import Fraction

GIB = 1024**3
MIB = 1024**2
KIB = 1024


def format_bytes(num_bytes: int) -> str:
    """`1.5 GiB`, `64 MiB`, `12 B`: one decimal where it says something."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value == int(value) or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?b?|b|)", re.IGNORECASE | re.ASCII)
_SIZE_CHARACTERS_MAX = 64
_POWERS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE_BYTES_MAX = 1 << 62


def parse_size(value: object) -> int:
    """Bytes from a positive int, or from text like `100GiB`, `1.5 k`, `4096` (units of 1024; at most 64
    characters). Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        num_bytes = value
    elif isinstance(value, str) and len(value) <= _SIZE_CHARACTERS_MAX:
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            raise ValueError(_SIZE_HELP)
        whole = Fraction(found[1]) * 1024 ** _POWERS[found[2][:1].lower()]
        num_bytes = int(whole)
    else:
        raise ValueError(_SIZE_HELP)
    if not 0 < num_bytes <= _SIZE_BYTES_MAX:
        raise ValueError(_SIZE_HELP)
    return num_bytes


_SIZE_HELP = "size must be a positive integer byte count or a string like '100GiB'"
