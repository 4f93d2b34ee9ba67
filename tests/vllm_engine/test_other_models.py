"""Shapes beyond a plain Llama: MLA, sliding windows, LoRA, speculation, and what is declined with one line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lmcache.integration.vllm.layout import unsupported_reason
from lmcache.testing.vllm_models import TINY_DEEPSEEK, TINY_GEMMA3, TINY_LFM2, TINY_LLAMA, write_adapter
from lmcache.testing.vllm_spec import patient_connector
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_engine.conftest import running
from tests.vllm_engine.driver import Driver
from tests.vllm_shared.driver import spec_of
from tests.vllm_shared.prompts import held, new_salt, prompt_of, same, worst_error

StartEngine = Callable[..., AbstractContextManager[Driver]]


@pytest.fixture
def start(server: CacheServer, tmp_path: pathlib.Path) -> StartEngine:
    """An engine for one test: these shapes are not shared."""

    @contextmanager
    def started(
        model: dict[str, Any], options: dict[str, Any] | None = None, joins: bool = True, **settings: Any
    ) -> Iterator[Driver]:
        connector = patient_connector(server.port, **settings)
        spec = spec_of(tmp_path / "model", connector, model=dict(model), options=options or {})
        yield from running(spec, server, joins)

    return started


@pytest.mark.parametrize("model", [TINY_DEEPSEEK, TINY_GEMMA3], ids=["mla", "sliding-window"])
def test_pages_of_other_attention(start: StartEngine, model: dict[str, Any]) -> None:
    """What is loaded is what was computed, to the last bit. vLLM on CPU has no prefix cache for MLA to compare with."""
    with start(model) as engine:
        for length in (300, 767, 1100):
            prompt, salt = prompt_of(length, seed=150), new_salt()
            num_cached, computed = engine.pages(prompt[: held(length)], salt)
            assert num_cached == 0
            engine.process.settle()
            engine.process.forget()
            num_cached, loaded = engine.pages(prompt, salt)
            assert num_cached == held(length)
            assert np.array_equal(loaded[:, : computed.shape[1]], computed)
            if model is TINY_GEMMA3:
                assert same(engine.hit(prompt, salt), engine.prefix_hit(prompt, held(length)))
        engine.check_nothing_held()


def test_adapters_have_keys_of_their_own(start: StartEngine, tmp_path: pathlib.Path) -> None:
    adapters = [
        (f"adapter-{number}", number, str(write_adapter(tmp_path / f"adapter-{number}", TINY_LLAMA, seed=number)))
        for number in (1, 2)
    ]
    prompt, salt = prompt_of(700, seed=151), new_salt()
    with start(TINY_LLAMA, {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}) as engine:

        def ask(adapter: tuple[str, int, str] | None, salt: str, length: int = 700) -> Any:
            (output,) = engine.process.generate([prompt[:length]], 4, salts=[salt], lora=adapter)
            engine.process.settle()
            return output

        tokens = set()
        for adapter in (None, *adapters):
            engine.process.forget()
            cold = ask(adapter, salt, 512)
            assert cold.num_cached_tokens == 0, "another adapter's KV was taken"
            tokens.add(tuple(cold.token_ids))
        assert len(tokens) == 3, "the adapters change nothing: the test shows nothing"
        for adapter in (None, *adapters):
            engine.process.forget()
            hit = ask(adapter, salt)
            assert hit.num_cached_tokens == 512
            oracle = new_salt("oracle")
            ask(adapter, oracle, 512)
            expected = ask(adapter, oracle)
            assert expected.num_cached_tokens == 512
            assert same(hit, expected)
        engine.check_nothing_held()


def test_speculation_without_kv_of_its_own(start: StartEngine) -> None:
    """Drafts that are rejected were written to pages, too: none of them may be saved as an answer."""
    speculation = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    stem = prompt_of(40, seed=152)
    prompt, salt = (stem * 8)[:300], new_salt()
    with start(TINY_LLAMA, {"speculative_config": speculation}, save_decode_cache=True) as engine:
        count = (
            "drafts = []\n"
            "update = scheduler.update_from_output\n"
            "def counted(output, result):\n"
            "    drafts.extend(output.scheduled_spec_decode_tokens.values())\n"
            "    return update(output, result)\n"
            "scheduler.update_from_output = counted\n"
            "engine.drafts = drafts"
        )
        engine.run(count)
        first = engine.store(prompt, salt, max_tokens=470)
        assert engine.run("result = sum(map(len, engine.drafts))") > 0
        turn = prompt + first.token_ids
        engine.process.settle()
        engine.process.forget()
        num_cached, pages = engine.pages(turn, salt)
        assert num_cached == 768
        assert worst_error(pages, engine.pages(turn, new_salt())[1]) < 0.1
        stored = prompt_of(700, seed=153)
        engine.store(stored[:512], salt)
        assert same(engine.hit(stored, salt), engine.prefix_hit(stored, 512))
        engine.check_nothing_held()


def test_hybrid_model_is_refused_by_vllm(start: StartEngine) -> None:
    """We are no `SupportsHMA` class, so vLLM gives up its hybrid cache, and cannot start such a model without."""
    with pytest.raises(RuntimeError, match="Failed to promote local KV cache specs"), start(TINY_LFM2, joins=False):
        pass


@pytest.mark.parametrize("method", ["eagle3", "draft_model", "deepseek_mtp"])
def test_drafts_with_kv_of_their_own_are_declined(method: str) -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(is_encoder_decoder=False),
        attention_config=SimpleNamespace(use_non_causal=False, hisparse_config=None),
        diffusion_config=None,
        weight_transfer_config=None,
        speculative_config=SimpleNamespace(method=method),
    )
    reason = unsupported_reason(cast(Any, config), None)
    assert reason is not None
    assert method in reason
    assert "\n" not in reason
