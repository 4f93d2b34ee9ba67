"""An engine and its server as the tests use them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import Gate
from tests.vllm_engine.cache_server import CacheServer
from tests.vllm_shared.driver import VllmDriver

_PATIENCE_S = 120.0


class Driver(VllmDriver):
    """`start_lines`: what the engine warned of while it started, where the fixture that made it kept them."""

    def __init__(self, process: EngineProcess, server: CacheServer) -> None:
        super().__init__(process)
        self.server = server
        self.start_lines: list[str] = []

    def pages(self, prompt: list[int], salt: str = "") -> tuple[int, np.ndarray]:
        num_cached, pages = self.process.call("pages", prompt, salt)
        return num_cached, pages

    def step_until(self, is_so: str, what: str) -> None:
        """Step until an expression is true in the engine's process: how many steps that takes is up to other threads
        and processes."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.run(f"result = bool({is_so})"):
            assert time.monotonic() < deadline, what
            self.process.call("step")

    def step_until_held(self, gate: Gate) -> None:
        """Until a load or a save of what was added has reached the gate."""
        deadline = time.monotonic() + _PATIENCE_S
        while not gate.is_held:
            assert time.monotonic() < deadline, f"nobody reached {gate.step}"
            self.process.call("step")

    def wait_until_joined(self) -> None:
        """Both halves are registered with the server as it runs now, not with one before it."""
        boot_id = self.server.run("result = engine.boot_id")
        source = (
            "from vllm.distributed.kv_transfer import get_kv_transfer_group\n"
            "halves = scheduler.connector._scheduler, get_kv_transfer_group()._worker\n"
            "joined = [half.membership.current for half in halves]\n"
            "result = [one.boot_id for one in joined if one is not None and not one.registered.missing_ranks]"
        )
        deadline = time.monotonic() + _PATIENCE_S
        while self.run(source) != [boot_id, boot_id]:
            assert time.monotonic() < deadline, "the engine did not join"
            time.sleep(0.02)
        assert self.process.call("wait_until_joined"), "the engine did not join"

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
