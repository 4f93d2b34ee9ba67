"""What a real vLLM says as it starts of settings and models that cannot be served: one line each."""

from __future__ import annotations

import pathlib

from lmcache.testing.vllm_models import TINY_GEMMA3
from lmcache.testing.vllm_spec import patient_connector
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.conftest import running
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import new_salt, prompt_of, same

# Its pages are dropped as the window moves on: no prefix stays whole.
NO_FULL_ATTENTION = {**TINY_GEMMA3, "layer_types": ["sliding_attention"] * TINY_GEMMA3["num_hidden_layers"]}
REASON = "KV of the kind SlidingWindowSpec is not supported: only full attention keeps every block"


def test_key_nobody_knows_is_named_once_with_the_nearest_known(main_engine: Driver) -> None:
    (line,) = main_engine.start_lines
    assert "lmcache.mp.laod_mode" in line
    assert "lmcache.mp.load_mode" in line


def test_declined_engine_says_why_once_and_serves(server: CacheServer, tmp_path: pathlib.Path) -> None:
    """Neither half of its connector goes to the server, and neither asks anything of it."""
    spec = spec_of(tmp_path / "model", patient_connector(server.port), model=dict(NO_FULL_ATTENTION))
    clients_before = server.run("result = sorted(engine.registry.clients)")
    objects_before = server.report()["objects"]
    for engine in running(spec, server, joins=False):
        prompt, salt = prompt_of(700, seed=160), new_salt()
        first = engine.one(prompt, salt)
        engine.process.forget()
        again = engine.one(prompt, salt)
        assert (len(first.token_ids), again.num_cached_tokens) == (4, 0)
        assert same(again, first)
        assert engine.log_lines() == [f"lmcache declines to cache for this engine: {REASON}"]
        assert server.run("result = sorted(engine.registry.clients)") == clients_before
        assert server.report()["objects"] == objects_before
