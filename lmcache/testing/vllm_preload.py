"""Imported once by the process that engine children are forked from."""

import os

from lmcache.testing.vllm_spec import ENVIRONMENT

os.environ.update(ENVIRONMENT)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import vllm
import vllm.model_executor.models.llama
import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker  # noqa: F401
