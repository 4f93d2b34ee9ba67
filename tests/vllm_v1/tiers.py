"""What is on its way to a disk tier, and what lies in its folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

from tests.vllm_v1.driver import EmbeddedDriver

_SETTLE_S = 20.0


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not in {_SETTLE_S:g} s: {what}"
        time.sleep(0.02)


def wait_until_stored(engine: EmbeddedDriver) -> None:
    source = "stores = worker.engine.storage.stores; result = stores.num_pending + stores.num_inflight"
    wait_until(lambda: engine.run(source) == 0, "what was computed is stored on disk")


def object_files(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000}


def num_files(folder: pathlib.Path) -> int:
    return len(object_files(folder))
