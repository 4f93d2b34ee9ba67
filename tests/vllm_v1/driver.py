"""A real vLLM with an engine of ours inside, as the tests use it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.vllm_shared.driver import VllmDriver

# The two halves, in a process that holds both.
_HALVES = """
from vllm.distributed.kv_transfer import get_kv_transfer_group
half = scheduler.connector._lmcache_engine._scheduler
worker = get_kv_transfer_group()._lmcache_engine._worker
"""
_PAGES = """
import numpy as np, torch
request_id = engine.add("pages", prompt, 2, salt)
request = scheduler.requests[request_id]
while not request.num_output_tokens:
    engine.step()
(block_ids,) = scheduler.kv_cache_manager.get_block_ids(request_id)
block_ids = block_ids[: len(prompt) // scheduler.block_size]
copier, layout = worker.engine._transfers._copier, worker.engine.rank.layout
packed = np.empty(len(block_ids) * copier.block_bytes, dtype=np.uint8)
copier.gather(block_ids, packed)
values = torch.from_numpy(packed).view(torch.bfloat16).float().reshape(layout.num_layers, len(block_ids), -1)
result = engine.finish()["pages"].num_cached_tokens, values.numpy()
"""
_STATE = """
result = {
    "num_free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
    "num_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
    "num_trackers": half.num_trackers,
    "num_unconfirmed": len(half._unconfirmed),
    "num_unsaved": len(half.saves._unsaved),
    "num_lookups_held": len(worker.engine.locks),
    "num_locked": worker.engine.l1.report()["read_locked_count"],
    "num_writing": worker.engine.l1.report()["write_locked_count"],
}
"""


class EmbeddedDriver(VllmDriver):
    def run(self, source: str, **values: Any) -> Any:
        """Run Python inside, where `half` is the scheduler's half and `worker` the worker's."""
        return self.process.run(_HALVES + source, **values)

    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, np.ndarray]:
        num_cached, pages = self.run(_PAGES, prompt=prompt, salt=salt)
        return num_cached, pages

    def clear(self) -> int:
        """Everything leaves L1."""
        num_removed: int = self.run("result = worker.engine.clear()")
        return num_removed

    def usage(self) -> dict[str, int]:
        found: dict[str, int] = self.run("result = dict(worker.engine.usage())")
        return found

    def pool_folder(self) -> str | None:
        """None where nothing is cached, or the process is not one that can be asked."""
        if self.process.call("run", "result = scheduler is None"):
            return None
        source = "result = str(worker.engine.pool.config.folder) if worker is not None and worker.engine else None"
        found: str | None = self.run(source)
        return found

    def check_nothing_held(self) -> None:
        """All blocks are free, no request is remembered; what lookups held is let go with the next step."""
        self.one([1, 2, 3], max_tokens=1)
        state = self.run(_STATE)
        num_blocks, num_free = state.pop("num_blocks"), state.pop("num_free_blocks")
        assert num_free == num_blocks - 1
        assert state == dict.fromkeys(state, 0)
