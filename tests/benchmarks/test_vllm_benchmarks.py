"""The benchmarks that need vLLM, on a tiny model: that they run and report, not how fast anything is."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from benchmarks import embedded_hooks, embedded_start, embedded_ttft, hooks, vllm_ttft
from benchmarks.common import Row
from lmcache.testing.vllm_models import TINY_LLAMA


def names_of_judged(rows: list[Row]) -> list[str]:
    return [row.name for row in rows if row.is_met is not None]


def test_vllm_ttft() -> None:
    rows = vllm_ttft.main({1024: 10.0}, TINY_LLAMA, rounds=1, warm_up=0)

    assert names_of_judged(rows) == ["1K: ours beyond bare"]


def test_embedded_ttft() -> None:
    rows = embedded_ttft.main((1024, 600), TINY_LLAMA, rounds=1, warm_up=1, num_pairs=1)

    assert names_of_judged(rows) == ["1K: ours to bare", "600: ours to bare"]


def test_hooks() -> None:
    rows = hooks.main(TINY_LLAMA, prompt_tokens=1024, prompts=1, decoded_tokens=5, short_prompts=2)

    assert len(names_of_judged(rows)) == 6


def test_embedded_hooks() -> None:
    rows = embedded_hooks.main(TINY_LLAMA, prompt_tokens=1024, prompts=1, decoded_tokens=5)

    assert len(rows) == 14
    judged = names_of_judged(rows)
    assert len(judged) == 4
    assert not any("statistics" in name for name in judged)


def test_embedded_start() -> None:
    rows = embedded_start.main(rounds=1, pool_gib=0.125)

    assert names_of_judged(rows) == ["added"]
    assert "0.125 GiB" in rows[1].name


def test_start_without_cache_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="declines to cache"):
        embedded_start.main(rounds=1, pool_gib=1e6)
