"""Byte sizes as people write and read them. Units are powers of 1024."""

from __future__ import annotations

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
