"""What is on its way to a disk tier, and what lies in its folder."""

from __future__ import annotations

import pathlib

from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.waiting import SETTLE_S


def wait_until_stored(engine: EmbeddedDriver) -> None:
    source = f"result = worker.engine.storage.stores.wait_until_empty({SETTLE_S})"
    assert engine.run(source), "what was computed is not stored on disk"


def object_files(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000}


def num_files(folder: pathlib.Path) -> int:
    return len(object_files(folder))
