"""A registered worker's context in a status: every documented field, from its registered layout."""

from __future__ import annotations

import json

import pytest

from lmcache.core.layout import KernelGroup, KVLayout
from tests.engine.conftest import CHUNK_SIZE, Harness


def group(*numbers: int, tokens: int = CHUNK_SIZE, backend: str = "CPU_ATTN") -> KernelGroup:
    names = tuple(f"model.layers.{number}.self_attn.attn" for number in numbers)
    return KernelGroup(names, 2048, "torch.bfloat16", (100, 2, tokens, 32), backend)


LAYOUT = KVLayout(CHUNK_SIZE, 100, (group(0, 2), group(1, backend="OTHER")), "NL_X_NB_NH_BS_HS", "cpu")


def test_every_documented_field(joined: Harness) -> None:
    joined.worker(uid=7, engine_id="other", kv_layout=LAYOUT)
    status = json.loads(json.dumps(joined.engine.report_status()))
    context = status["cache_context_meta"][str(status["registered_gpu_ids"][-1])]
    assert list(context) == ["model_name", "world_size", "rank", "kv_cache_layout"]
    assert (context["model_name"], context["world_size"], context["rank"]) == ("org/m", 1, 0)
    layout = context["kv_cache_layout"]
    groups = layout.pop("kernel_groups")
    assert layout == {"num_layers": 3, "num_blocks": 100, "cache_size_per_token": 3 * 2048 // CHUNK_SIZE}
    assert groups[0] == {
        "kernel_group_idx": 0,
        "engine_group_idx": 0,
        "object_group_idx": 0,
        "num_layers": 2,
        "layer_indices": [0, 2],
        "tokens_per_block": CHUNK_SIZE,
        "slots_per_block": CHUNK_SIZE,
        "dtype": "torch.bfloat16",
        "engine_kv_concrete_shape": f"[100, 2, {CHUNK_SIZE}, 32]",
        "is_mla": False,
        "engine_kv_format": "NL_X_NB_NH_BS_HS",
        "engine_kv_shape": "[blocks, heads, tokens, content]",
        "attention_backend": "CPU_ATTN",
    }
    changed = {"kernel_group_idx": 1, "num_layers": 1, "layer_indices": [1], "attention_backend": "OTHER"}
    assert groups[1] == groups[0] | changed


def test_the_shape_is_the_tensors_where_kernels_cut_blocks(joined: Harness) -> None:
    cut = KVLayout(CHUNK_SIZE, 100, (group(0, tokens=CHUNK_SIZE // 4),), "NL_X_NB_NH_BS_HS", "cpu")
    joined.worker(uid=7, engine_id="other", kv_layout=cut)
    (context,) = list(joined.engine.report_status()["cache_context_meta"].values())[-1:]  # type: ignore[attr-defined]
    (found,) = context["kv_cache_layout"]["kernel_groups"]
    assert found["engine_kv_concrete_shape"] == f"[400, 2, {CHUNK_SIZE // 4}, 32]"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("model.layers.16.attn", "model.layers.17.attn"), (16, 17)),
        (("layers.3", "layers.1"), (3, 1)),
        (("a.0.x", "b.0.x"), (0, 1)),
        (("first", "second"), (0, 1)),
        (("model.layers.5.attn", "other"), (0, 1)),
        (("gpt2.4.attn", "gpt2.3.attn"), (4, 3)),
    ],
)
def test_layers_bear_the_models_numbers(names: tuple[str, ...], expected: tuple[int, ...]) -> None:
    groups = tuple(KernelGroup((name,), 64, "uint8", (4, 1, 4, 4)) for name in names)
    assert KVLayout(4, 4, groups, "F", "p").layer_indices == expected


def test_an_empty_context_is_shown(joined: Harness) -> None:
    empty = KVLayout(CHUNK_SIZE, 0, (group(0),), "NL_X_NB_NH_BS_HS", "cpu")
    joined.worker(uid=7, engine_id="other", kv_layout=empty)
    assert joined.engine.report_status()["registered_gpu_ids"] == [0, 1]
