"""Imported once by the process that engine children are forked from."""

import os

from lmcache.testing.vllm_engine import ENVIRONMENT

os.environ.update(ENVIRONMENT)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import vllm  # noqa: E402, F401
import vllm.model_executor.models.llama  # noqa: E402, F401
import vllm.v1.engine.llm_engine  # noqa: E402, F401
import vllm.v1.worker.cpu_worker  # noqa: E402, F401
