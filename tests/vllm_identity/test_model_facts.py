"""One test per input that must change an engine's root, and those that must not."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lmcache.core.hashing import make_algorithm
from lmcache.core.identity import make_root
from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.errors import DeclinedError
from tests.vllm_identity.conftest import MakeConfig, write_model, write_weights

if TYPE_CHECKING:
    from vllm.config import VllmConfig

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 2048}


def _facts(config: VllmConfig, model_version: str | None = None) -> dict[str, object]:
    from lmcache.integration.vllm.model_facts import model_facts

    return model_facts(config, model_version)


def _layout(**changes: Any) -> KVLayout:
    group = KernelGroup(("layers.0", "layers.1"), 4096, "torch.bfloat16", (10, 2, 128, 64))
    values = {"block_size": 128, "num_blocks": 10, "format_name": "NL_X_NB_NH_BS_HS", "packing": "cpu/vec"}
    if "dtype" in changes:
        group = dataclasses.replace(group, dtype=changes.pop("dtype"))
    return KVLayout(**(values | {"groups": (group,)} | changes))


def _root(config: VllmConfig, model_version: str | None = None, **layout: Any) -> bytes:
    facts = json.loads(json.dumps(_facts(config, model_version)))
    return make_root(make_algorithm("blake3"), facts, [_layout(**layout)], 256)


ENGINE_ARGUMENTS = {
    "revision": {"revision": "v2"},
    "code revision": {"code_revision": "v2"},
    "rope scaling": {"hf_overrides": {"rope_parameters": YARN}},
    "rope scaling's factor": {"hf_overrides": {"rope_parameters": YARN | {"factor": 2.0}}},
    "rope theta": {"hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}},
    "any value of the config": {"hf_overrides": {"rms_norm_eps": 1e-6}},
    "dtype": {"dtype": "float32"},
    "kv cache dtype": {"kv_cache_dtype": "fp8"},
    "tensor parallel size": {"tensor_parallel_size": 2},
    "pipeline parallel size": {"pipeline_parallel_size": 2},
    "seed of dummy weights": {"seed": 7},
    "implementation": {"model_impl": "transformers"},
    "LoRA": {"enable_lora": True},
    "LoRA's dtype": {"enable_lora": True, "lora_dtype": "float16"},
}


def test_each_engine_argument_that_changes_values_changes_the_root(make_config: MakeConfig) -> None:
    roots = {name: _root(make_config(**arguments)) for name, arguments in ENGINE_ARGUMENTS.items()}
    roots["nothing"] = _root(make_config())
    assert len(set(roots.values())) == len(ENGINE_ARGUMENTS) + 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"enforce_eager": True},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 4096},
        {"max_model_len": 1024},
        {"gpu_memory_utilization": 0.5},
        {"enable_prefix_caching": False},
        {"served_model_name": "another"},
        {"max_logprobs": 5},
        {"kv_transfer_config": {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_port": 1}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_leaves_the_values_alone_leaves_the_root_alone(make_config: MakeConfig, arguments: dict[str, Any]) -> None:
    assert _root(make_config(**arguments)) == _root(make_config())


@pytest.mark.parametrize(
    "layout",
    [{"block_size": 64}, {"dtype": "torch.float16"}, {"format_name": "NL_X_NB_BS_NH_HS"}, {"packing": "cpu/amx"}],
    ids=lambda layout: next(iter(layout)),
)
def test_the_layout_changes_the_root(make_config: MakeConfig, layout: dict[str, Any]) -> None:
    assert _root(make_config(), **layout) != _root(make_config())
    assert _root(make_config(), num_blocks=99) == _root(make_config())


def _with(config: VllmConfig, section: str, **changes: Any) -> VllmConfig:
    """A copy with fields set as no CPU engine would start with."""
    changed, part = copy.copy(config), copy.copy(getattr(config, section))
    for name, value in changes.items():
        setattr(part, name, value)
    setattr(changed, section, part)
    return changed


def test_what_cpu_engines_cannot_be_started_with_changes_the_root_too(make_config: MakeConfig) -> None:
    from vllm.config.multimodal import MultiModalConfig
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    plain = make_config()
    pruning = MultiModalConfig(video_pruning_rate=0.5)
    roots = [
        _root(config)
        for config in (
            plain,
            _with(plain, "model_config", quantization="fp8"),
            _with(plain, "model_config", quantization="fp8", quantization_config={"linear": "int8"}),
            _with(plain, "model_config", disable_sliding_window=True),
            _with(plain, "model_config", multimodal_config=MultiModalConfig()),
            _with(plain, "model_config", multimodal_config=pruning),
            _with(plain, "model_config", model="/models/another"),
            _with(plain, "cache_config", kv_cache_dtype_skip_layers=["0"]),
            _with(plain, "parallel_config", decode_context_parallel_size=2),
            _with(plain, "parallel_config", prefill_context_parallel_size=2),
            _with(plain, "attention_config", backend=AttentionBackendEnum.FLASH_ATTN),
            _with(plain, "kernel_config", linear_backend="marlin"),
        )
    ]
    assert len(set(roots)) == len(roots)


def test_a_quantized_checkpoint_changes_the_root(make_config: MakeConfig, tmp_path: pathlib.Path) -> None:
    folder = write_model(tmp_path)
    before = _facts(make_config(model=str(folder)))["hf_config"]
    scheme = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    other = write_model(tmp_path / "awq", quantization_config=scheme)
    assert _facts(make_config(model=str(other), dtype="float16"))["hf_config"] != before


def test_the_version_of_vllm_changes_the_root(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _root(make_config())
    monkeypatch.setattr("vllm.__version__", "0.99")
    assert _root(make_config()) != before


def test_the_longest_prompt_counts_where_rotary_factors_depend_on_it(make_config: MakeConfig) -> None:
    factors = [1.0] * 16
    long_rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": [2.0] * 16,
        "original_max_position_embeddings": 1024,
    }
    for rope, does_count in ((long_rope, True), (YARN, False)):
        overrides = {"hf_overrides": {"rope_parameters": rope}}
        short, long = (make_config(**overrides, max_model_len=length) for length in (512, 1536))
        assert (_root(short) != _root(long)) == does_count


def test_rope_types_are_found_wherever_they_stand() -> None:
    from lmcache.integration.vllm.model_facts import rope_types

    config = {
        "type": "not a rope",
        "rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {"rope_type": "default"}},
        "text_config": {"rope_scaling": {"type": "dynamic"}},
        "layers": [{"rope_parameters": {"rope_type": "longrope"}}],
    }
    assert rope_types(config) == {"yarn", "default", "dynamic", "longrope"}


def test_replaced_weights_change_the_root_unless_the_user_names_them(
    make_config: MakeConfig, tmp_path: pathlib.Path
) -> None:
    folder = write_model(tmp_path)
    write_weights(folder / "model.safetensors")
    config = make_config(model=str(folder), load_format="auto")
    before, named_before = _root(config), _root(config, "v1")
    assert before == _root(config)
    write_weights(folder / "model.safetensors", {"layer.1": 5})
    assert _root(config) != before
    assert _root(config, "v1") == named_before != before
    assert _root(config, "v2") != named_before
    (folder / "model.safetensors").unlink()
    with pytest.raises(DeclinedError, match="model_version"):
        _root(config)
    assert _root(config, "v1") == named_before


def test_a_copied_model_folder_has_other_keys_by_its_name_alone(
    make_config: MakeConfig, tmp_path: pathlib.Path
) -> None:
    """The name of the model is a field of every key, so the facts may say it too."""
    folders = [write_model(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        write_weights(folder / "model.safetensors")
    first, second = (_facts(make_config(model=str(folder), load_format="auto")) for folder in folders)
    assert [name for name in first if first[name] != second[name]] == ["model"]


def test_the_same_in_every_process_and_on_every_host(
    make_config: MakeConfig, model_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = (
        "import json, sys, socket\n"
        "socket.gethostname = lambda: 'another-host'\n"
        "from vllm.engine.arg_utils import EngineArgs\n"
        "from lmcache.integration.vllm.model_facts import model_facts\n"
        "config = EngineArgs(model=sys.argv[1], skip_tokenizer_init=True, load_format='dummy').create_engine_config()\n"
        "print('FACTS' + json.dumps(model_facts(config, None)))\n"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(root), "VLLM_HOST_IP": "127.0.0.2"}
    command = [sys.executable, "-c", program, str(model_folder)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FACTS")]
    assert json.loads(line.removeprefix("FACTS")) == json.loads(json.dumps(_facts(make_config())))


def test_plain_values_depend_on_nothing_but_the_value() -> None:
    import torch

    from lmcache.integration.vllm.model_facts import plain

    assert plain({"b": {3, 1}, 2: (float("inf"), torch.bfloat16)}) == {
        "b": ["1", "3"],
        "2": ["float:inf", "torch.bfloat16"],
    }
    with pytest.raises(DeclinedError, match="object"):
        plain(object())


# Fields that were looked at and found not to decide the values in a KV cache, or only through other facts.
JUDGED_IRRELEVANT = {
    "ModelConfig": """
        model_weights runner tokenizer tokenizer_mode seed hf_config hf_text_config is_submodel_config
        word_embeddings_untied_by_checkpoint hf_config_path allowed_local_media_path allowed_media_domains
        tokenizer_revision max_model_len spec_target_max_model_len allow_deprecated_quantization enforce_eager
        return_sampling_mask max_logprobs logprobs_mode use_fp64_gumbel enable_trace_replay disable_cascade_attn
        skip_tokenizer_init enable_prompt_embeds served_model_name config_format hf_token generation_config
        override_generation_config enable_sleep_mode sleep_preserve_parameter_names sleep_mode_backend
        sleep_mode_offload_cudagraph enable_nccl_comm_suspend enable_cumem_allocator logits_processors
        io_processor_plugin renderer_num_workers pooler_config multimodal_config
    """,
    # The block size is in the layout; models with Mamba layers are declined.
    "CacheConfig": """
        block_size user_specified_block_size kv_cache_layout prefix_match_unit gpu_memory_utilization
        is_attention_free num_gpu_blocks_override sliding_window enable_prefix_caching prefix_caching_hash_algo
        prefix_cache_retention_interval mamba_page_size_padded skip_page_size_padded mamba_block_size
        mamba_cache_dtype mamba_ssm_cache_dtype mamba_cache_mode enable_mamba_shared_prefix_checkpoint
        replayssm_buffer_len use_replayssm use_kda_recoverssm num_gpu_blocks num_cpu_blocks
        effective_attention_block_size kv_cache_size_tokens kv_cache_max_concurrency hash_block_size
        cache_hit_alignment_tokens swa_bounded_replay kv_cache_memory_bytes kv_offloading_size
        kv_offloading_backend _block_size_resolved
    """,
    "MultiModalConfig": """
        limit_per_prompt mm_processor_cache_gb mm_processor_cache_type mm_hasher_algorithm
        mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode mm_encoder_fp8_scale_save_path
        skip_mm_profiling mm_tensor_ipc mm_ipc_gpu_memory_gb
    """,
    "LoRAConfig": """
        max_lora_rank max_loras fully_sharded_loras max_cpu_loras specialize_active_lora max_lora_cls_labels
    """,
    "KernelConfig": """
        ir_op_priority enable_flashinfer_autotune enable_rocm_segmented_attn_autotune enable_cutedsl_warmup
        enable_jit_warmup sparse_indexer_topk_backend
    """,
}


def test_every_field_of_vllms_configuration_was_judged() -> None:
    """Fails when another version of vLLM brings a field: decide whether it is a fact, or list it above."""
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig
    from vllm.config.kernel import KernelConfig
    from vllm.config.multimodal import MultiModalConfig

    from lmcache.integration.vllm import model_facts as module

    facts = {
        ModelConfig: module._MODEL_FIELDS,
        CacheConfig: module._CACHE_FIELDS,
        MultiModalConfig: module._MULTIMODAL_FIELDS,
        LoRAConfig: module._LORA_FIELDS,
        KernelConfig: module._KERNEL_FIELDS,
    }
    for config, names in facts.items():
        fields = {field.name for field in dataclasses.fields(config)}
        judged = {*names, *JUDGED_IRRELEVANT[config.__name__].split()}
        assert fields - judged == set(), config.__name__
        assert judged - fields <= {"calculate_kv_scales"}, config.__name__
