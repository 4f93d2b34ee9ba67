"""What operators are told of vLLM: every documented key, nothing secret, nothing that JSON lacks."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from lmcache.core.layout import KernelGroup, KVLayout
from lmcache.integration.vllm.engine_metadata import engine_metadata
from lmcache.integration.vllm.inference_info import VLLMInference, describe_config
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.utils import get_version
from tests.vllm_identity.conftest import MakeConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

LAYOUT = KVLayout(
    block_size=16,
    num_blocks=9,
    groups=(
        KernelGroup(("layers.0", "layers.1"), 4096, "torch.float16", (9, 2, 16, 64), "CPU_ATTN"),
        KernelGroup(("layers.2",), 2048, "torch.float16", (9, 2, 16, 32), "CPU_ATTN"),
    ),
    format_name="NL_X_NB_NH_BS_HS",
    packing="cpu",
    is_mla=False,
)


def connected(config: VllmConfig, **extra: Any) -> VllmConfig:
    from vllm.config import KVTransferConfig

    changed = copy.copy(config)
    changed.kv_transfer_config = KVTransferConfig(
        kv_connector="LMCacheConnectorV1", kv_role="kv_both", engine_id="engine-1", kv_connector_extra_config=extra
    )
    return changed


def test_every_documented_key_is_told(make_config: MakeConfig) -> None:
    import vllm

    config = make_config(max_model_len=1024)
    found = VLLMInference(config).info()
    assert json.loads(json.dumps(found)) == found
    text = found.pop("vllm_config")
    assert isinstance(text, str)
    assert "max_seq_len=1024" in text
    assert config.model_config.model in text
    assert found == {
        "vllm_version": vllm.__version__,
        "lmcache_version": get_version(),
        "model_config": {
            "model": config.model_config.model,
            "dtype": "torch.bfloat16",
            "max_model_len": 1024,
            "vocab_size": 256,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "head_size": 32,
        },
        "cache_config": {
            "block_size": config.cache_config.block_size,
            "cache_dtype": "auto",
            "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
            "swap_space": None,
            "enable_prefix_caching": True,
        },
    }


def test_the_version_alone(make_config: MakeConfig) -> None:
    import vllm

    assert VLLMInference(make_config()).version() == {"vllm_version": vllm.__version__}


def test_whole_models_are_told_where_ranks_have_parts(make_config: MakeConfig) -> None:
    model = VLLMInference(make_config(tensor_parallel_size=2)).info()["model_config"]
    assert isinstance(model, dict)
    assert (model["num_layers"], model["num_kv_heads"], model["num_attention_heads"]) == (2, 2, 2)


class Odd:
    """A configuration of a vLLM that is not like ours."""

    class model_config:
        model = "org/model"
        dtype = "float16"

        @staticmethod
        def get_vocab_size() -> int:
            raise NotImplementedError

    def __str__(self) -> str:
        raise ValueError("not printable")


def test_odd_fields_hide_no_others() -> None:
    found = VLLMInference(Odd()).info()  # type: ignore[arg-type]
    model, cache = found["model_config"], found["cache_config"]
    assert found["vllm_config"] is None
    assert isinstance(model, dict)
    assert isinstance(cache, dict)
    assert (model["model"], model["dtype"], model["vocab_size"], model["head_size"]) == (
        "org/model", "float16", None, None,
    )  # fmt: skip
    assert set(cache.values()) == {None}
    assert len(cache) == 5


class Talkative:
    """Prints what vLLM's own configuration may one day print."""

    class model_config:
        hf_token = "hf_abcdef"

    class kv_transfer_config:
        kv_connector_extra_config = {"nested": {"api_key": "k-123456"}, "lmcache.remote_url": "redis://u:pw-1@host"}  # noqa: RUF012

    def __str__(self) -> str:
        return (
            "tokenizer='/models/a', tokenizer_mode=auto, aws_secret='s-1', {'password': \"p-1\", 'max_tokens': 5}, "
            "token=hf_abcdef, endpoint='http://me:pw-2@host', extra=k-123456, auth_token='', url=redis://u:pw-1@host"
        )


def test_secrets_are_kept_back() -> None:
    text = describe_config(Talkative())
    assert not [secret for secret in ("hf_abcdef", "s-1", "p-1", "k-123456", "pw-1", "pw-2") if secret in text]
    for harmless in ("tokenizer='/models/a'", "tokenizer_mode=auto", "'max_tokens': 5", "@host", "auth_token=''"):
        assert harmless in text


def test_metadata_of_a_scheduler(make_config: MakeConfig) -> None:
    config = connected(make_config(tensor_parallel_size=2), api_key="k-123456", **{"lmcache.chunk_size": 64})
    found = engine_metadata(config, ParallelStrategy.of(config, False, 0), "scheduler", 64)
    assert found.model_name == config.model_config.model
    assert found.served_model_name == config.model_config.model
    assert (found.world_size, found.local_world_size, found.worker_id, found.local_worker_id) == (2, 2, 0, 0)
    assert (found.kv_dtype, found.kv_shape) == ("torch.bfloat16", (2, 2, 64, 1, 32))
    assert (found.role, found.use_mla, found.first_rank, found.chunk_size) == ("scheduler", False, 0, 64)
    assert (found.engine_id, found.kv_layer_groups_manager) == ("engine-1", None)
    assert found.kv_connector_extra_config == {"api_key": "***", "lmcache.chunk_size": 64}


def test_metadata_of_a_worker_with_pages(make_config: MakeConfig) -> None:
    config = connected(make_config(tensor_parallel_size=2))
    found = engine_metadata(config, ParallelStrategy.of(config, False, 1), "worker", 256, LAYOUT)
    assert (found.worker_id, found.local_worker_id, found.kv_dtype) == (1, 1, "torch.float16")
    assert found.kv_shape == (3, 2, 256, 1, 32)
    assert found.kv_layer_groups_manager == [
        {"num_layers": 2, "first_layer": "layers.0", "last_layer": "layers.1", "dtype": "torch.float16",
         "shape": [9, 2, 16, 64], "page_bytes": 4096, "attention_backend": "CPU_ATTN"},
        {"num_layers": 1, "first_layer": "layers.2", "last_layer": "layers.2", "dtype": "torch.float16",
         "shape": [9, 2, 16, 32], "page_bytes": 2048, "attention_backend": "CPU_ATTN"},
    ]  # fmt: skip
    json.dumps(found.kv_layer_groups_manager)


def test_metadata_where_all_ranks_hold_the_same(make_config: MakeConfig) -> None:
    config = connected(make_config(tensor_parallel_size=2))
    found = engine_metadata(config, ParallelStrategy(4, 3, 2, True), "worker", 256)
    assert (found.use_mla, found.first_rank, found.kv_shape) == (True, 2, (2, 1, 256, 1, 32))
    assert (found.world_size, found.local_world_size, found.local_worker_id) == (4, 2, 1)


@pytest.mark.parametrize(("names", "told"), [("a", "a"), (["b", "c"], "b")])
def test_the_first_served_name_is_told(make_config: MakeConfig, names: object, told: str) -> None:
    config = connected(make_config(served_model_name=names))
    assert engine_metadata(config, ParallelStrategy.of(config, False, 0), "scheduler", 16).served_model_name == told


def test_the_cache_may_have_another_type(make_config: MakeConfig) -> None:
    config = connected(make_config(kv_cache_dtype="fp8_e5m2"))
    found = engine_metadata(config, ParallelStrategy.of(config, False, 0), "scheduler", 16)
    assert found.kv_dtype in ("torch.float8_e5m2", "torch.uint8")
