"""The demo with a short prompt and a tiny model: whatever happens to vLLM and the server, the prompt is held."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("vllm")

from benchmarks import demo
from benchmarks.common import SHARED_MEMORY
from lmcache.testing.vllm_models import TINY_LLAMA
from lmcache.testing.vllm_spec import patient_connector

NUM_TOKENS = 1024  # whole chunks: after a full hit the last token alone is computed
happened: list[str] = []


class NotingStage(demo.Stage):
    """Does what it is told, and keeps what that was."""

    def start_server(self) -> None:
        super().start_server()
        happened.append("server started")

    def start_engine(self) -> None:
        super().start_engine()
        happened.append("vLLM started")

    def forget(self) -> None:
        super().forget()
        happened.append("vLLM forgot")


def test_demo_shows_three_full_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "Stage", NotingStage)
    happened.clear()

    answers = demo.run(NUM_TOKENS, TINY_LLAMA, patient_connector)

    assert [answer.num_cached_tokens for answer in answers] == [0, *[NUM_TOKENS] * 3]
    assert all(answer.ttft_s > 0 for answer in answers)
    assert happened == [
        "server started", "vLLM started", "vLLM forgot", "vLLM started", "vLLM forgot", "server started",
    ]  # fmt: skip
    assert not list(SHARED_MEMORY.glob(f"lmcache-demo-{os.getpid()}*"))
