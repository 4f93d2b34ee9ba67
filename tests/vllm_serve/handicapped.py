"""Our connector with a handicap, for tests that must meet an engine in the middle of something.

Loaded by `kv_connector_module_path`, in every process of the engine.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmcache.integration.mp.jobs import StoreOutcome, StoreResult
from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector
from lmcache.kv_copy.cpu import CpuCopier


class _HeldCopier(CpuCopier):
    """Gathers nothing while `hold_file` exists."""

    hold_file = pathlib.Path("/nowhere")

    def gather(self, block_ids: Sequence[int], slot: np.ndarray) -> None:
        while self.hold_file.exists():
            time.sleep(0.01)
        super().gather(block_ids, slot)


class HandicappedConnector(LMCacheMPConnector):
    """`test.hold_file`: while it exists, saves stand still. `test.mute_file`: while it exists, rank 1 saves nothing."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        from lmcache.integration.vllm import worker_adapter

        _HeldCopier.hold_file = pathlib.Path(self._extra("test.hold_file", "/nowhere"))
        worker_adapter.CpuCopier = _HeldCopier  # type: ignore[misc]
        super().register_kv_caches(kv_caches)

    def wait_for_save(self) -> None:
        mute_file = self._extra("test.mute_file", "")
        if mute_file and self._worker is not None and self._worker._parallel.rank == 1:
            meta = self._meta()
            if pathlib.Path(mute_file).exists():
                for job in meta.stores:
                    self._worker._take_store(StoreResult(job.job_id, StoreOutcome.DROPPED))
                meta.stores = []
        super().wait_for_save()

    def _extra(self, key: str, default: Any) -> Any:
        return (self._vllm_config.kv_transfer_config.kv_connector_extra_config or {}).get(key, default)
