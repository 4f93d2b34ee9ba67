"""The names vLLM's built-in connector module imports: our two halves and their values."""

from lmcache.integration.mp.jobs import StoreJob as LoadStoreOp
from lmcache.integration.vllm.parallel import ParallelStrategy
from lmcache.integration.vllm.scheduler_adapter import LMCacheMPSchedulerAdapter
from lmcache.integration.vllm.worker_adapter import LMCacheMPWorkerAdapter

__all__ = ["LMCacheMPSchedulerAdapter", "LMCacheMPWorkerAdapter", "LoadStoreOp", "ParallelStrategy"]
