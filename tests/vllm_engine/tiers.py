"""Backends that outlive a server, and a real `lmcache server` process that uses one of them."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmcache.core.keys import ObjectKey
from lmcache.testing.l2_backend import L2Backend
from tests.conftest import new_pool_folder
from tests.server.running import RunningServer
from tests.vllm_serve.serving import (
    decode_key,
    encode_key,
    is_stored_in_l2,
    keys_in_l2,
    l1_status,
    metric,
    num_clients,
    wait_until,
)

_PAGE_SIZE = 2  # small, so that a few objects fill several pages


@dataclass
class Tier:
    """`settings`: the adapter as an operator would configure it. `backend`: the way behind its back."""

    name: str
    settings: dict[str, Any]
    backend: L2Backend

    def corrupt(self, keys: list[ObjectKey]) -> None:
        """Flip the last byte of each object: every one is still there, and as long as before."""
        for key in keys:
            content = bytearray(self.backend.content(key) or b"")
            content[-1] ^= 0xFF
            self.backend.replace(key, bytes(content))


class TierServer:
    """A server with one tier, for as long as its pool lasts."""

    def __init__(self, process: RunningServer) -> None:
        self.process = process
        self.http = process.http

    def num_clients(self) -> int:
        return num_clients(self.process)

    def metric(self, name: str) -> float:
        return metric(self.http.get("/metrics").text, name)

    def wait_until_stored(self) -> None:
        wait_until(lambda: is_stored_in_l2(self.process), "what was computed is stored in L2")

    def listed(self) -> list[tuple[ObjectKey, int]]:
        return keys_in_l2(self.process, _PAGE_SIZE)

    def delete(self, keys: list[ObjectKey]) -> None:
        answer = self.http.request("DELETE", "/l2", json={"keys": [encode_key(key) for key in keys]})
        assert (answer.status_code, answer.json()["ok"]) == (200, True), answer.text

    def l1_keys(self) -> list[ObjectKey]:
        answer = self.http.get("/cache/objects", params={"tier": "l1", "page_size": 5000})
        assert answer.status_code == 200, answer.text
        return [decode_key(entry["key"]) for entry in answer.json()["entries"]]


@contextlib.contextmanager
def tier_server(port: int, tier: Tier) -> Iterator[TierServer]:
    """In a pool of its own, which goes with it. It ends as a crash would end it."""
    folder: pathlib.Path = new_pool_folder()
    flags = ["--port", str(port), "--l1-size-gb", "0.125", "--l2-adapter", json.dumps(tier.settings)]
    process = RunningServer(folder, *flags)
    try:
        process.wait_until_up()
        wait_until(lambda: not l1_status(process)["is_populating"], "there is room in L1")
        yield TierServer(process)
    finally:
        process.close()
        shutil.rmtree(folder, ignore_errors=True)
