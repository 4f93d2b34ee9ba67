"""`vllm serve` in a process of its own, and what a test asks of it and of the cache server over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil

from lmcache.core.keys import ObjectKey
from lmcache.testing.ports import free_port
from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_models import TINY_LLAMA
from lmcache.testing.vllm_spec import ENVIRONMENT
from tests.conftest import child_env
from tests.server.running import RunningServer

_UP_S = 480.0  # three processes, each of which takes seconds to import what it needs
_WARM_UP_TOKENS = 300  # a whole chunk
_DOWN_S = 60.0


def wait_until(
    is_so: Callable[[], bool], what: str, timeout_s: float = 60.0, show: Callable[[], object] = lambda: ""
) -> None:
    """`show`: what there is instead."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what} {show()}"
        time.sleep(0.02)


def handicapped(connector: dict[str, Any], **handicaps: Any) -> dict[str, Any]:
    """The same kv-transfer-config, with the connector of the module of that name."""
    extra = connector["kv_connector_extra_config"] | {f"test.{key}": value for key, value in handicaps.items()}
    return connector | {
        "kv_connector": "HandicappedConnector",
        "kv_connector_module_path": "tests.vllm_serve.handicapped",
        "kv_connector_extra_config": extra,
    }


def random_prompt(seed: str, num_tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(TINY_LLAMA["vocab_size"]) for _ in range(num_tokens)]


def status(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/status").json()
    return found


def l1_status(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = status(server)["storage_manager"]["l1_manager"]
    return found


def worker_ids(server: RunningServer) -> list[int]:
    found: list[int] = status(server)["registered_gpu_ids"]
    return found


def num_clients(server: RunningServer) -> int:
    return int(status(server).get("worker_liveness", {}).get("tracked_instances", 0))


def wait_until_it_finds(ask: Callable[[list[int]], int], forget: Callable[[], None], server: RunningServer) -> None:
    """An engine that the server knows may not know it yet: its scheduler learns the root of its keys a moment after
    all have registered, and connects for its lookups then. What it is asked before that is neither saved nor found.

    `ask`: how many tokens of a prompt it did not compute. Leaves nothing in L1.
    """
    number = itertools.count()

    def has_found() -> bool:
        prompt = random_prompt(f"warm-up {next(number)}", _WARM_UP_TOKENS)
        ask(prompt)
        forget()
        num_cached = ask(prompt)
        forget()
        return num_cached > 0

    wait_until(has_found, "the engine finds what it has saved")
    assert server.http.post("/clear-cache").status_code == 200


def wait_until_it_saves(engine: EngineProcess, server: RunningServer) -> None:
    """And finds it again."""
    ask = lambda prompt: engine.generate([prompt], 1, salts=["warm-up"])[0].num_cached_tokens  # noqa: E731
    wait_until_it_finds(ask, engine.forget, server)


def is_stored_in_l2(server: RunningServer) -> bool:
    """Nothing is on its way there."""
    report = status(server)["storage_manager"]["store_controller"]
    return not report["pending_keys_count"] and not report["in_flight_task_count"]


def keys_in_l2(server: RunningServer, page_size: int = 5000) -> list[tuple[ObjectKey, int]]:
    """Keys and sizes, of every page one after the other."""
    found: list[tuple[ObjectKey, int]] = []
    query: dict[str, Any] = {"page_size": page_size}
    while True:
        answer = server.http.get("/l2/keys", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["entries"]) <= page_size
        found += [(decode_key(entry["key"]), entry["size_bytes"]) for entry in page["entries"]]
        if page["next_page_token"] is None:
            return found
        query["page_token"] = page["next_page_token"]


def decode_key(fields: dict[str, Any]) -> ObjectKey:
    rest = {name: value for name, value in fields.items() if name != "chunk_hash_hex"}
    return ObjectKey(bytes.fromhex(fields["chunk_hash_hex"]), **rest)


def encode_key(key: ObjectKey) -> dict[str, Any]:
    return {
        "chunk_hash_hex": key.chunk_hash.hex(), "model_name": key.model_name, "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id, "cache_salt": key.cache_salt,
    }  # fmt: skip


def metric(text: str, name: str) -> float:
    """The sum of a metric's samples in an exposition."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in found)


@contextlib.contextmanager
def process_tree_killed(pid: int) -> Iterator[list[psutil.Process]]:
    """All processes below `pid` and itself, killed at the end if they have not been before."""
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    try:
        yield processes
    finally:
        kill_all(processes)


def kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


class VllmServe:
    """The engine runs in processes of its own below the API server's, as in production."""

    def __init__(self, model: pathlib.Path, connector: dict[str, Any]) -> None:
        self.model = str(model)
        port = free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", self.model,
                "--kv-transfer-config", json.dumps(connector), "--skip-tokenizer-init", "--enforce-eager",
                "--max-model-len", "4096", "--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details",
            ],
            stdout=self._log, stderr=self._log,
            env=child_env(**ENVIRONMENT, VLLM_CPU_KVCACHE_SPACE="1", VLLM_SERVER_DEV_MODE="1"),
        )  # fmt: skip
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"vllm serve ended: {self.log()[-5000:]}"
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"vllm serve did not come up: {self.log()[-5000:]}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def complete(self, prompt: list[int], max_tokens: int = 6) -> tuple[list[int], int]:
        """The generated token ids, and how many of the prompt's tokens were cached."""
        answer = self.http.post(
            "/v1/completions",
            json={
                "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0,
                "ignore_eos": True, "return_token_ids": True,
            },
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        found = answer.json()
        details = found["usage"]["prompt_tokens_details"] or {}
        return found["choices"][0]["token_ids"], details.get("cached_tokens") or 0

    def forget(self) -> None:
        """Until vLLM could empty its own prefix cache: then no save holds a block any more."""
        wait_until(self._has_forgotten, "no save holds a block")

    def _has_forgotten(self) -> bool:
        return bool(self.http.post("/reset_prefix_cache").raise_for_status().json()["success"])

    def metrics(self) -> str:
        return self.http.get("/metrics").text

    def close(self) -> None:
        with process_tree_killed(self._process.pid):
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DOWN_S)
        self._process.wait()
        self.http.close()
        self._log.close()
