"""Policies on a real trace: what they are worth, and that it stays so.

conversations.jsonl.gz: one conversation in twelve of the conversation trace that the Mooncake
project published with its FAST '25 paper (Apache-2.0), 977 requests. Of each request it keeps the
block ids, numbered anew: one per 512-token block.
"""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import policies
from benchmarks.policies import Replay, hit_rate, num_unique, read_trace
from lmcache.eviction import make_policy, policy_names

TRACE = pathlib.Path(__file__).with_name("conversations.jsonl.gz")
REQUESTS = read_trace(TRACE)
NUM_BLOCKS = num_unique(REQUESTS)


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        ("noop", 0.10, 0.1201),
        ("LRU", 0.03, 0.1128),
        ("LRU", 0.10, 0.2755),
        ("IsolatedLRU", 0.10, 0.2755),
        ("ARC", 0.03, 0.1590),
        ("ARC", 0.10, 0.2939),
        ("S3-FIFO", 0.03, 0.1264),
        ("S3-FIFO", 0.10, 0.2513),
    ],
)
def test_a_policy_finds_as_much_as_it_did(name: str, share: float, expected: float) -> None:
    assert hit_rate(name, REQUESTS, int(NUM_BLOCKS * share)) == pytest.approx(expected, abs=0.0005)


def test_prompts_touched_from_head_to_tail_would_find_less() -> None:
    """Why callers touch in reverse: then a prompt loses its leaves first."""

    class HeadFirst(Replay):
        def _in_order(self, slots: list[int]) -> list[int]:
            return slots

    num_slots = int(NUM_BLOCKS * 0.03)
    found = {}
    for kind in (Replay, HeadFirst):
        replay = kind(make_policy("LRU"), num_slots)
        for request in REQUESTS:
            replay.ask(request)
        found[kind] = replay.num_hit
    assert found[Replay] > found[HeadFirst]


def test_the_benchmark_lists_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    rows = policies.main([TRACE], shares=[0.02])
    assert [row.name.split(", ")[-1] for row in rows] == policy_names()
    assert "prefix blocks found" in capsys.readouterr().out
