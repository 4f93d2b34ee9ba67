"""What a run found: the samples, the figures made of them, and how they are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmcache.core.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was run, and against what."""

    url: str
    server_version: str
    model_name: str
    instance_id: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: str
    block_size: int
    chunk_size: int
    tokens: int
    request_bytes: int

    @property
    def num_chunks(self) -> int:
        return self.tokens // self.chunk_size


@dataclass(slots=True)
class RunReport:
    """Times of measured requests, and what was checked in all. `num_digests` is None where nothing was compared."""

    facts: RunFacts
    move_s: list[float] = field(default_factory=list)
    store_s: list[float] = field(default_factory=list)
    retrieve_s: list[float] = field(default_factory=list)
    lookup_s: list[float] = field(default_factory=list)
    num_bytes_checked: int = 0
    num_bytes_wrong: int = 0
    first_wrong: str = ""
    num_digests: int | None = None
    num_digests_different: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        return not (self.num_bytes_wrong or self.num_digests_different or self.problems) and self.num_bytes_checked > 0

    def figures(self) -> dict[str, float | None]:
        """GB/s of 10^9 bytes; ratios are the median over requests, each held against its own memmove."""
        size = self.facts.request_bytes
        return {
            "memmove_gb_per_s": _speed(size, self.move_s),
            "store_gb_per_s": _speed(size, self.store_s),
            "store_ratio": _ratio(self.move_s, self.store_s),
            "retrieve_gb_per_s": _speed(size, self.retrieve_s),
            "retrieve_ratio": _ratio(self.move_s, self.retrieve_s),
            "lookup_p50_ms": _percentile_ms(self.lookup_s, 0.50),
            "lookup_p99_ms": _percentile_ms(self.lookup_s, 0.99),
        }

    def as_json(self) -> dict[str, Any]:
        facts = {name: getattr(self.facts, name) for name in self.facts.__slots__}
        return {
            **facts, **self.figures(), "requests_measured": len(self.move_s), "lookups_measured": len(self.lookup_s),
            "bytes_checked": self.num_bytes_checked, "bytes_wrong": self.num_bytes_wrong,
            "first_wrong": self.first_wrong, "checksums_compared": self.num_digests,
            "checksums_different": self.num_digests_different, "problems": self.problems, "ok": self.is_ok,
        }  # fmt: skip

    def lines(self) -> list[str]:
        facts, figures = self.facts, self.figures()
        found = [
            f"lmcache server {facts.server_version} at {facts.url}",
            f"  model      {facts.model_name} (instance {facts.instance_id}): {facts.num_layers} layers, "
            f"{facts.num_kv_heads} KV heads of {facts.head_size}, {facts.dtype}",
            f"  requests   {len(self.move_s)} of {facts.tokens} tokens, {format_bytes(facts.request_bytes)}: "
            f"{facts.num_chunks} chunks of {facts.chunk_size}, blocks of {facts.block_size}",
            f"  memmove    {_shown(figures['memmove_gb_per_s'], 'GB/s')}",
            *(
                f"  {name:<10} {_shown(figures[f'{name}_gb_per_s'], 'GB/s')}"
                f"  {_shown(figures[f'{name}_ratio'], 'of memmove')}"
                for name in ("store", "retrieve")
            ),
            f"  lookup     p50 {_shown(figures['lookup_p50_ms'], 'ms')}, p99 {_shown(figures['lookup_p99_ms'], 'ms')} "
            f"({len(self.lookup_s)} times {facts.num_chunks} chunks)",
        ]
        return found + self._verdict_lines()

    def _verdict_lines(self) -> list[str]:
        size = format_bytes(self.num_bytes_checked)
        if self.num_bytes_wrong:
            found = [f"  WRONG      {self.num_bytes_wrong} bytes of {size} differ, the first in {self.first_wrong}"]
        elif self.num_bytes_checked:
            found = [f"  verified   {size}, every byte as it was stored"]
        else:
            found = ["  verified   nothing: no chunk came back"]
        if self.num_digests is not None:
            state = f"{self.num_digests_different} DIFFER" if self.num_digests_different else "all equal"
            found.append(f"  checksums  {self.num_digests} chunks before the store and after the retrieve: {state}")
        return found + [f"  PROBLEM    {problem}" for problem in self.problems]


def _speed(num_bytes: int, times_s: Sequence[float]) -> float | None:
    return num_bytes / statistics.median(times_s) / 1e9 if times_s else None


def _ratio(move_s: Sequence[float], times_s: Sequence[float]) -> float | None:
    pairs = list(zip(move_s, times_s, strict=False))
    return statistics.median(move / took for move, took in pairs) if pairs else None


def _percentile_ms(times_s: Sequence[float], share: float) -> float | None:
    """The nearest rank: a value that was measured."""
    if not times_s:
        return None
    return sorted(times_s)[max(0, math.ceil(share * len(times_s)) - 1)] * 1000


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f} {unit}"
