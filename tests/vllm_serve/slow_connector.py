"""Our connector with a copier so slow that a test can meet it in the middle of a save."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector
from lmcache.kv_copy.cpu import CpuCopier

_SECONDS_PER_CHUNK = 0.5

_gather = CpuCopier.gather


def _gather_slowly(self: CpuCopier, block_ids: Sequence[int], slot: np.ndarray) -> None:
    time.sleep(_SECONDS_PER_CHUNK)
    _gather(self, block_ids, slot)


class SlowConnector(LMCacheMPConnector):
    """Saving takes half a second per chunk. Loaded by `kv_connector_module_path`, in every process of the engine."""

    CpuCopier.gather = _gather_slowly  # type: ignore[method-assign]
