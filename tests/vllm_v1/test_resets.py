"""vLLM's prefix cache is reset: what was stored before is not used any more, unless the user says otherwise."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import pytest

from tests.vllm_v1.conftest import running, spec_of, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver

PROMPT = [random.Random(7).randrange(1000) for _ in range(700)]


@pytest.fixture(scope="module")
def wary_engine(model_folder: pathlib.Path) -> Iterator[EmbeddedDriver]:
    yield from running(
        spec_of(model_folder, v1_connector(keep_on_reset=False), options={"enable_prefix_caching": False})
    )


def test_a_reset_begins_anew(wary_engine: EmbeddedDriver) -> None:
    wary_engine.process.forget()  # what another test stored
    first = wary_engine.one(PROMPT)
    again = wary_engine.one(PROMPT)
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 512)
    assert again.token_ids == first.token_ids
    wary_engine.process.forget()
    after = wary_engine.one(PROMPT)
    assert after.num_cached_tokens == 0, "its weights may be others now"
    assert after.token_ids == first.token_ids
    assert wary_engine.one(PROMPT).num_cached_tokens == 512, "what was computed since is used again"


def test_a_reset_under_running_requests_saves_nothing_under_old_keys(wary_engine: EmbeddedDriver) -> None:
    result = wary_engine.run(
        """
engine.add("r", prompt, 4, "")
engine.step()
old = half._root
assert scheduler.reset_prefix_cache(reset_running_requests=True)
engine.finish()
result = old, half._root, half.num_trackers
""",
        prompt=PROMPT[:600],
    )
    assert result[0] != result[1]
    assert result[2] == 0
    assert wary_engine.one(PROMPT[:600]).num_cached_tokens == 512
