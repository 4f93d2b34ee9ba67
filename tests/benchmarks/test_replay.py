"""The replay of a trace through a real server, with a small trace: that what it finds is what the simulation finds."""

from __future__ import annotations

import json
import pathlib
import random

import pytest

from benchmarks import __main__ as suite
from benchmarks import replay
from benchmarks.policies import Request, num_unique, read_trace
from lmcache.eviction import make_policy

NUM_REQUESTS = 60
_PROMPTS = 24


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> pathlib.Path:
    """Prompts of 4 to 12 blocks that begin with one and the same block, each as popular as Zipf says."""
    rng = random.Random(1)
    prompts = [[0, *range(100 * number, 100 * number + rng.randint(3, 11))] for number in range(1, _PROMPTS + 1)]
    weights = [1 / number for number in range(1, _PROMPTS + 1)]
    path = tmp_path / "trace.jsonl"
    chosen = rng.choices(prompts, weights, k=NUM_REQUESTS)
    path.write_text("".join(json.dumps({"hash_ids": prompt}) + "\n" for prompt in chosen))
    return path


def test_a_server_finds_what_the_simulation_finds(trace: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With room for everything no order counts, and so none that a busy machine could change."""
    rows = replay.main(trace, shares=[1.0], policies=["LRU", "S3-FIFO"])

    assert [row.name for row in rows] == ["LRU, 100%", "S3-FIFO, 100%"]
    assert [row.is_met for row in rows] == [True, True]
    asked = [block for request in read_trace(trace) for block in request]
    found = 1 - num_unique(read_trace(trace)) / len(asked)
    assert rows[0].value == f"{found:.4f}, simulated {found:.4f} = +0.00%"
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in rows)


def test_the_simulation_stores_as_a_worker_does() -> None:
    """Batches that double up to 16 chunks, each committed when two more are reserved."""
    steps: list[tuple[str, int]] = []

    class Noted(replay.BatchedReplay):
        def _reserve(self, blocks: Request) -> list[int]:
            steps.append(("reserve", len(blocks)))
            return super()._reserve(blocks)

        def _commit(self, slots: list[int], tenant: str) -> None:
            steps.append(("commit", len(slots)))
            super()._commit(slots, tenant)

    simulated = Noted(make_policy("LRU"), 100)
    simulated.ask(range(50))
    simulated.ask(range(60))

    assert steps[:10] == [
        ("reserve", 2), ("reserve", 4), ("reserve", 8), ("commit", 2), ("reserve", 16), ("commit", 4),
        ("reserve", 16), ("commit", 8), ("reserve", 4), ("commit", 16),
    ]  # fmt: skip
    assert (simulated.num_asked, simulated.num_hit) == (110, 50)


def test_a_difference_beyond_the_target_is_missed() -> None:
    assert replay._row("x", 0.2, 0.201).is_met is True
    assert replay._row("x", 0.2, 0.203).is_met is False
    assert replay._row("x", 0.203, 0.2).is_met is False
    assert replay._row("x", 0.1, 0.0).is_met is False
    assert replay._row("x", 0.0, 0.0).is_met is True


def test_it_is_one_of_the_suite() -> None:
    assert "replay" in suite.NAMES
    assert replay.TRACE.exists()
