"""Models whose KV is of another kind: latent attention, and windows that vLLM keeps whole for this connector."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from lmcache.testing.vllm_models import TINY_DEEPSEEK, TINY_GEMMA3
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import new_salt, prompt_of, same
from tests.vllm_v1.conftest import running, v1_connector


@pytest.mark.parametrize("model", [TINY_DEEPSEEK, TINY_GEMMA3], ids=["latent", "windows"])
def test_hit_equals_prefix_hit(tmp_path: pathlib.Path, model: dict[str, Any]) -> None:
    for engine in running(spec_of(tmp_path, v1_connector(), model=dict(model), options={"max_model_len": 2048})):
        prompt, salt = prompt_of(900, seed=7), new_salt()
        engine.store(prompt[:768], salt)
        hit = engine.hit(prompt, salt)
        assert hit.num_cached_tokens == 768
        assert same(hit, engine.prefix_hit(prompt, 768))
        assert engine.hit(prompt, new_salt()).num_cached_tokens == 0
        engine.check_nothing_held()
