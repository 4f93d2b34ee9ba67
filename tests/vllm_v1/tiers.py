"""Engines with a disk tier, and what lies in its folder."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.vllm_shared.driver import spec_of
from tests.vllm_v1.conftest import running, v1_connector
from tests.vllm_v1.driver import EmbeddedDriver

_SETTLE_S = 20.0


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not in {_SETTLE_S:g} s: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def opened(folder: pathlib.Path, connector: dict[str, Any], **more: Any) -> Iterator[EmbeddedDriver]:
    with contextlib.contextmanager(running)(spec_of(folder, connector, **more)) as engine:
        yield engine


def on_disk(folder: pathlib.Path, **more: Any) -> dict[str, Any]:
    return v1_connector(local_disk=str(folder), max_local_disk_size=1.0, **more)


def wait_until_stored(engine: EmbeddedDriver) -> None:
    source = "stores = worker.engine.storage.stores; result = stores.num_pending + stores.num_inflight"
    wait_until(lambda: engine.run(source) == 0, "what was computed is stored on disk")


def object_files(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000}


def num_files(folder: pathlib.Path) -> int:
    return len(object_files(folder))
