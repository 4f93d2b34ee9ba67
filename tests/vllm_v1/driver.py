"""A real vLLM with an engine of ours inside, as the tests use it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from tests.vllm_shared.driver import VllmDriver
from tests.vllm_v1.waiting import wait_until

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


_WAIT_FOR_TIERS = """
tiers = worker.engine.storage.tiers() if worker is not None and worker.engine else []
result = all([tier.wait_until_open(30) for tier in tiers])
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

    def wait_for_tiers(self) -> None:
        """Until all that it began with are in use, where it caches anything and can be asked."""
        if not self.process.call("run", "result = scheduler is None"):
            assert self.run(_WAIT_FOR_TIERS), "a tier does not open"

    def pool_folder(self) -> str | None:
        """None where nothing is cached, or the process is not one that can be asked."""
        if self.process.call("run", "result = scheduler is None"):
            return None
        source = "result = str(worker.engine.pool.config.folder) if worker is not None and worker.engine else None"
        found: str | None = self.run(source)
        return found

    def check_nothing_held(self) -> None:
        """All blocks are free, no request is remembered; what lookups held is let go with the next step, and what
        was fetched for them a moment after they were answered."""
        self.one([1, 2, 3], max_tokens=1)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._what_is_held(), "nothing is held any more")
        assert self._what_is_held() == {}

    def _what_is_held(self) -> dict[str, int]:
        state: dict[str, int] = self.run(_STATE)
        state["num_blocks_held"] = state.pop("num_blocks") - 1 - state.pop("num_free_blocks")
        return {name: count for name, count in state.items() if count}
