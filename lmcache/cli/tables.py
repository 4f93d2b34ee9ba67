"""Tables, bars and indented JSON: how commands print for people."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

_BAR_WIDTH = 20


def print_table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Columns as wide as their widest cell; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(indent + "  ".join(cells).rstrip())


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def usage_bar(used: float, total: float) -> str:
    """`[#####...............]  25.0%`; full also where more is used than there is, or there is none."""
    share = used / total if total > 0 else float(used > 0)
    num_marks = min(_BAR_WIDTH, round(share * _BAR_WIDTH))
    return f"[{'#' * num_marks:.<{_BAR_WIDTH}}] {share:6.1%}"
