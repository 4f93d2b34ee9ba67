"""An engine and its server as the tests use them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lmcache.testing.vllm_engine import EngineProcess
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_shared.driver import VllmDriver


class Driver(VllmDriver):
    def __init__(self, process: EngineProcess, server: CacheServer) -> None:
        super().__init__(process)
        self.server = server

    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, np.ndarray]:
        num_cached, pages = self.process.call("pages", prompt, salt)
        return num_cached, pages

    def wait_until_joined(self, timeout_s: float = 20.0) -> None:
        """Both halves are registered with the server as it runs now, not with one before it."""
        boot_id = self.server.run("result = engine.boot_id")
        source = (
            "from vllm.distributed.kv_transfer import get_kv_transfer_group\n"
            "halves = scheduler.connector._scheduler, get_kv_transfer_group()._worker\n"
            "joined = [half.membership.current for half in halves]\n"
            "result = [one.boot_id for one in joined if one is not None and not one.registered.missing_ranks]"
        )
        deadline = time.monotonic() + timeout_s
        while self.run(source) != [boot_id, boot_id] or not self.state["is_joined"]:
            assert time.monotonic() < deadline, "the engine did not join"
            time.sleep(0.02)

    @property
    def state(self) -> dict[str, Any]:
        return self.process.call("connector_state")

    def check_nothing_held(self) -> None:
        self.process.settle()
        state = self.state
        assert (state["num_free_blocks"], state["num_trackers"], state["num_open_saves"]) == (
            state["num_blocks"] - 1, 0, 0,
        ), state  # fmt: skip
        self.server.wait_until_idle()
