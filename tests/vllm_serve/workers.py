"""What a test asks of an engine's workers, each in a process of its own: digests of their pages, and blank ones."""

from __future__ import annotations

from typing import Any

from lmcache.testing.vllm_engine import EngineProcess

# The engine must have it in its environment: functions travel to its workers by value.
ENVIRONMENT = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
# Two ranks on two cores.
TWO_RANKS = ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "OMP_NUM_THREADS": "1"}

# Sent by value, since workers do not know this module.
_SOURCE = """
def digests(worker, block_ids, chunk_size):
    import hashlib
    def of(layers, ids):
        blobs = [layer[i].float().contiguous().numpy().tobytes() for layer in layers for i in ids]
        return hashlib.md5(b"".join(blobs)).hexdigest()
    layers = worker.model_runner.kv_caches
    chunks = [block_ids[start:start + chunk_size] for start in range(0, len(block_ids), chunk_size)]
    by_layer = {f"layer_{n}": [of([layer], ids) for ids in chunks] for n, layer in enumerate(layers)}
    return [of(layers, ids) for ids in chunks], by_layer

def wipe(worker):
    for layer in worker.model_runner.kv_caches:
        layer.zero_()

def shape(worker):
    return [list(layer.shape) for layer in worker.model_runner.kv_caches]

result = llm.collective_rpc(locals()[function], args=arguments)
"""


def in_workers(process: EngineProcess, name: str, *arguments: Any) -> list[Any]:
    """Call `digests(block_ids, chunk_size)`, `wipe()` or `shape()` in every worker; one result per rank."""
    found: list[Any] = process.run(_SOURCE, function=name, arguments=arguments)
    return found


def filled_pages(process: EngineProcess, num_blocks: int) -> list[set[str]]:
    """Digests of the blocks that are not blank, per rank; `num_blocks` is all of them."""
    by_rank = [over_all for over_all, _ in in_workers(process, "digests", list(range(num_blocks)), 1)]
    # Block 0 is never used, so it stays as a wipe leaves it.
    return [set(digests) - {digests[0]} for digests in by_rank]
