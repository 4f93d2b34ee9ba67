"""Backends that outlive a server, and a real `lmcache server` process that uses one of them."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lmcache.core.keys import ObjectKey
from lmcache.testing.l2_backend import L2Backend
from tests.conftest import new_pool_folder
from tests.server.running import RunningServer
from tests.vllm_serve.serving import metric

_PAGE_SIZE = 2  # small, so that a few objects fill several pages
_SETTLE_S = 20.0


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


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = _SETTLE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.02)


class TierServer:
    """A server with one tier, for as long as its pool lasts."""

    def __init__(self, process: RunningServer) -> None:
        self.process = process
        self.http = process.http

    @property
    def port(self) -> int:
        return int(self.process.zmq_url.rsplit(":", 1)[1])

    def storage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/status").json()["storage_manager"]
        return found

    def num_clients(self) -> int:
        return int(self.http.get("/status").json().get("worker_liveness", {}).get("tracked_instances", 0))

    def metric(self, name: str) -> float:
        return metric(self.http.get("/metrics").text, name)

    def wait_until_stored(self) -> None:
        """Nothing is on its way to the tier."""

        def is_idle() -> bool:
            report = self.storage()["store_controller"]
            return not report["pending_keys_count"] and not report["in_flight_task_count"]

        wait_until(is_idle, "what was computed is stored in L2")

    def listed(self) -> list[tuple[ObjectKey, int]]:
        """Every page of /l2/keys, one after the other."""
        found: list[tuple[ObjectKey, int]] = []
        token = None
        while True:
            query = {"page_size": _PAGE_SIZE, **({"page_token": token} if token else {})}
            answer = self.http.get("/l2/keys", params=query)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert len(page["entries"]) <= _PAGE_SIZE
            found += [(_key(entry["key"]), entry["size_bytes"]) for entry in page["entries"]]
            token = page["next_page_token"]
            if token is None:
                return found

    def delete(self, keys: list[ObjectKey]) -> None:
        answer = self.http.request("DELETE", "/l2", json={"keys": [_fields(key) for key in keys]})
        assert (answer.status_code, answer.json()["ok"]) == (200, True), answer.text

    def l1_keys(self) -> list[ObjectKey]:
        answer = self.http.get("/cache/objects", params={"tier": "l1", "page_size": 5000})
        assert answer.status_code == 200, answer.text
        return [_key(entry["key"]) for entry in answer.json()["entries"]]


def _key(fields: dict[str, Any]) -> ObjectKey:
    return ObjectKey(
        bytes.fromhex(fields["chunk_hash_hex"]), fields["model_name"], fields["kv_rank"], fields["object_group_id"],
        fields["cache_salt"],
    )  # fmt: skip


def _fields(key: ObjectKey) -> dict[str, Any]:
    return {
        "chunk_hash_hex": key.chunk_hash.hex(), "model_name": key.model_name, "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id, "cache_salt": key.cache_salt,
    }  # fmt: skip


@contextlib.contextmanager
def tier_server(port: int, tier: Tier) -> Iterator[TierServer]:
    """In a pool of its own, which goes with it. It ends as a crash would end it."""
    folder: pathlib.Path = new_pool_folder()
    flags = ["--port", str(port), "--l1-size-gb", "0.125", "--l2-adapter", json.dumps(tier.settings)]
    process = RunningServer(folder, *flags)
    try:
        process.wait_until_up()
        yield TierServer(process)
    finally:
        process.close()
        shutil.rmtree(folder, ignore_errors=True)
