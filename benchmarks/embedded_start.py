"""What the in-process mode adds to vLLM's start: with the connector and its pool, and without, in turn.

vLLM is imported before; what only the connector imports is not. The weights are dummies.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

from benchmarks.common import SHARED_MEMORY, Row, children_kept_quiet, median, print_rows
from lmcache.config.engine import LMCacheEngineConfig
from lmcache.core.sizes import GIB
from lmcache.memory.room import measure_room
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import TINY_LLAMA
from lmcache.testing.vllm_spec import EngineSpec, embedded_connector

ROUNDS = 5
ADDED_S_MAX = 1.0
# Of what is free, if that is less than the default pool.
_POOL_SHARE = 0.8


def main(rounds: int = ROUNDS, pool_gib: float | None = None) -> list[Row]:
    """`pool_gib`: the mode's default, or what fits, where None."""
    pool_gib = pool_gib or pool_that_fits_gib()
    with children_kept_quiet(), tempfile.TemporaryDirectory(prefix="lmcache-bench-") as name:
        pairs = _pairs(pathlib.Path(name), pool_gib, rounds)
    with_s, without_s = zip(*pairs, strict=True)
    added_s = median([ours - bare for ours, bare in pairs])
    rows = [
        Row("vLLM alone", f"{median(without_s):.2f} s"),
        Row(f"with ours, a pool of {pool_gib:g} GiB", f"{median(with_s):.2f} s"),
        Row("added", f"{added_s:.2f} s", f"<= {ADDED_S_MAX:g} s", added_s <= ADDED_S_MAX),
    ]
    print_rows(f"start of vLLM on CPU, in-process mode, {rounds} pairs", rows)
    return rows


def pool_that_fits_gib() -> float:
    default_gib = float(LMCacheEngineConfig({}).max_local_cpu_size)
    free_gib = measure_room(SHARED_MEMORY).free_bytes / GIB
    if free_gib * _POOL_SHARE >= default_gib:
        return default_gib
    found = round(free_gib * _POOL_SHARE, 2)
    print(f"there is no room for the default pool of {default_gib:g} GiB: {found:g} GiB instead")
    return found


def _pairs(folder: pathlib.Path, pool_gib: float, rounds: int) -> list[tuple[float, float]]:
    """Seconds with ours and without, who goes first in turn; the first pair warms up and does not count."""
    found = []
    for number in range(rounds + 1):
        took_s: dict[bool, float] = {}
        for is_ours in (True, False) if number % 2 else (False, True):
            took_s[is_ours] = _start_s(folder, embedded_connector(max_local_cpu_size=pool_gib) if is_ours else None)
        found.append((took_s[True], took_s[False]))
    return found[1:]


def _start_s(folder: pathlib.Path, connector: dict[str, Any] | None) -> float:
    begun_s = time.perf_counter()
    engine = EngineProcess(EngineSpec(folder, TINY_LLAMA, connector, options={"load_format": "dummy"}))
    took_s = time.perf_counter() - begun_s
    declined = [line for line in engine.call("log_lines") if "declines" in line]
    engine.close()
    if declined:
        raise RuntimeError(declined[0])
    return took_s


if __name__ == "__main__":
    main()
