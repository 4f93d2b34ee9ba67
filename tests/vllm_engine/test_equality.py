"""Hits of the server mode: equal to vLLM's own, and to the bare connector's where a prompt is held whole."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from benchmarks.vllm_hits import bare_connector
from lmcache.testing.vllm_spec import patient_connector
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.conftest import running
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.equality import HitEquality
from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, same


@pytest.fixture(scope="module")
def uncached_engine(server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """vLLM's prefix caching off: all that is known is known to us."""
    options = {"enable_prefix_caching": False}
    yield from running(spec_of(model_folder, patient_connector(server.port), options=options), server)


class TestHitEquality(HitEquality):
    pass


@pytest.fixture(scope="module", params=["async", "sync"])
def bare_engine(request: pytest.FixtureRequest, server: CacheServer, model_folder: pathlib.Path) -> Iterator[Driver]:
    """The reference in the same process: a copy each way, and nothing that could go wrong."""
    spec = spec_of(model_folder, bare_connector(request.param))
    yield from running(spec, server, joins=False)


def test_whole_prompt_is_held(
    bare_engine: Driver, request: pytest.FixtureRequest, main_engine: Driver, sync_engine: Driver
) -> None:
    """vLLM must compute the last token itself; its own prefix cache would compute a whole block."""
    is_sync = "sync]" in request.node.name and "async]" not in request.node.name
    engine = sync_engine if is_sync else main_engine
    for length in (CHUNK, 2 * CHUNK, 4 * CHUNK):
        prompt, salt = prompt_of(length, seed=6), new_salt()
        outputs = []
        for one in (bare_engine, engine):
            one.store(prompt, salt, max_tokens=2)
            outputs.append(one.hit(prompt, salt))
        assert outputs[0].num_cached_tokens == outputs[1].num_cached_tokens
        assert outputs[0].num_cached_tokens in (length, length - 1)
        assert same(*outputs)
    engine.check_nothing_held()
