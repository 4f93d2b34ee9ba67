"""Real vLLM configurations of a tiny Llama, each built once."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

if importlib.util.find_spec("vllm") is None:  # engines are optional
    collect_ignore_glob = ["test_*.py"]

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MakeConfig = Callable[..., "VllmConfig"]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def write_model(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder


def write_weights(path: pathlib.Path, change: dict[str, int] | None = None, num_tensors: int = 3) -> None:
    """A real safetensors file; `change` adds 1 to one value of the tensors it names."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {f"layer.{index}": rng.standard_normal((64, 48), dtype=np.float32) for index in range(num_tensors)}
    for name, position in (change or {}).items():
        tensors[name].ravel()[position] += 1
    save_file(tensors, path)


@pytest.fixture(scope="session", autouse=True)
def _imported_vllm() -> None:
    """Once and first: importing it warns, and warnings are errors in tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.engine.arg_utils
        import vllm.v1.request
        import vllm.v1.worker.utils  # noqa: F401


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def make_config(model_folder: pathlib.Path) -> MakeConfig:
    """`make_config(**engine args)`: vLLM's own configuration, shared: do not change it."""

    @cache
    def made(text: str) -> VllmConfig:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import EngineArgs

            arguments = {"model": str(model_folder), "skip_tokenizer_init": True, "load_format": "dummy"}
            return EngineArgs(**(arguments | json.loads(text))).create_engine_config()

    return lambda **arguments: made(json.dumps(arguments, sort_keys=True))
