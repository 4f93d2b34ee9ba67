"""Set-ups whose KV a prefix does not decide, or that we cannot copy, are declined in one line each."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.vllm_identity.conftest import MakeConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

SIZES = {"block_size": 32, "num_kv_heads": 2, "head_size": 16, "dtype": torch.bfloat16}


def _reason(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig | None = None) -> str | None:
    from lmcache.integration.vllm.layout import unsupported_reason

    return unsupported_reason(vllm_config, kv_cache_config)


def _groups(*specs: Any) -> KVCacheConfig:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    groups = [KVCacheGroupSpec([f"layers.{index}"], spec) for index, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=4, kv_cache_tensors=[], kv_cache_groups=groups)


def _specs() -> dict[str, Any]:
    from vllm.v1 import kv_cache_interface as interface

    full = interface.FullAttentionSpec(**SIZES)
    window = interface.SlidingWindowSpec(**SIZES, sliding_window=64)
    return {
        "full": full,
        "windowed by the model alone": interface.FullAttentionSpec(**SIZES, sliding_window=64),
        "mla": interface.MLAAttentionSpec(**SIZES | {"num_kv_heads": 1}),
        "uniform": interface.UniformTypeKVCacheSpecs(block_size=32, kv_cache_specs={"layers.0": full}),
        "window": window,
        "prefix LM": interface.FullAttentionSpec(**SIZES, non_causal=True),
        "compressed": interface.MLAAttentionSpec(**SIZES | {"num_kv_heads": 1}, tokens_per_state=4),
        "mamba": interface.MambaSpec(block_size=32, shapes=((4, 4),), dtypes=(torch.float32,)),
    }


def test_plain_engines_are_served(make_config: MakeConfig) -> None:
    specs = _specs()
    assert _reason(make_config()) is None
    assert _reason(make_config(tensor_parallel_size=2)) is None
    assert _reason(make_config(pipeline_parallel_size=2)) is None
    for name in ("full", "windowed by the model alone", "mla", "uniform"):
        assert _reason(make_config(), _groups(specs[name])) is None, name


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["full", "window"], r"2 groups of KV blocks \(FullAttentionSpec, SlidingWindowSpec\)"),
        (["full", "mamba"], r"2 groups of KV blocks \(FullAttentionSpec, MambaSpec\)"),
        (["window"], "kind SlidingWindowSpec"),
        (["mamba"], "kind MambaSpec"),
        (["prefix LM"], "attend to later tokens"),
        (["compressed"], "4 tokens per state"),
        ([], "no KV cache"),
    ],
)
def test_kinds_of_kv_that_are_declined(make_config: MakeConfig, names: list[str], text: str) -> None:
    specs = _specs()
    reason = _reason(make_config(), _groups(*[specs[name] for name in names]))
    assert reason is not None
    _must_match(reason, text)


def _must_match(reason: str, text: str) -> None:
    assert re.search(text, reason), reason
    assert "\n" not in reason


def _with(config: VllmConfig, section: str, **changes: Any) -> VllmConfig:
    changed, part = copy.copy(config), copy.copy(getattr(config, section))
    for name, value in changes.items():
        setattr(part, name, value)
    setattr(changed, section, part)
    return changed


@pytest.mark.parametrize(
    ("section", "changes", "text"),
    [
        ("parallel_config", {"decode_context_parallel_size": 2}, "context parallelism .decode 2, prefill 1"),
        ("parallel_config", {"prefill_context_parallel_size": 2}, "context parallelism .decode 1, prefill 2"),
        ("parallel_config", {"world_size": 4, "nnodes": 2}, "other hosts"),
        ("parallel_config", {"world_size": 4, "distributed_executor_backend": "ray"}, "'ray'.*other hosts"),
        ("attention_config", {"use_non_causal": True}, "attend to later tokens"),
    ],
)
def test_configurations_that_are_declined(
    make_config: MakeConfig, section: str, changes: dict[str, Any], text: str
) -> None:
    reason = _reason(_with(make_config(), section, **changes))
    assert reason is not None
    _must_match(reason, text)


@pytest.mark.parametrize(
    ("method", "is_served"), [("ngram", True), ("suffix", True), ("eagle3", False), ("mtp", False)]
)
def test_drafts_with_kv_of_their_own_are_declined(make_config: MakeConfig, method: str, is_served: bool) -> None:
    config = copy.copy(make_config())
    config.speculative_config = SimpleNamespace(method=method, model=None, revision=None)
    reason = _reason(config)
    assert (reason is None) == is_served
    if reason is not None:
        _must_match(reason, f"'{method}'")


def test_encoder_decoder_models_are_declined(make_config: MakeConfig) -> None:
    config = copy.copy(make_config())
    config.model_config = SimpleNamespace(is_encoder_decoder=True)
    reason = _reason(config)
    assert reason is not None
    _must_match(reason, "encoder-decoder")


def test_weights_replaced_at_run_time_are_declined(make_config: MakeConfig) -> None:
    config = copy.copy(make_config())
    config.weight_transfer_config = SimpleNamespace(backend="nccl")
    reason = _reason(config)
    assert reason is not None
    _must_match(reason, "weight_transfer_config")
