"""A real vLLM on CPU in a child process, driven from a test: one engine per configuration.

Children are forked from a server process that has imported vLLM once. This is the parent's
half; `vllm_child` is the other.
"""

from __future__ import annotations

import multiprocessing
import pathlib
import time
from dataclasses import dataclass, field
from typing import Any

from lmcache.testing.vllm_models import SMALL_LLAMA, TINY_LLAMA, write_model

__all__ = [
    "ENVIRONMENT",
    "SMALL_LLAMA",
    "TINY_LLAMA",
    "EngineProcess",
    "EngineSpec",
    "Gate",
    "Output",
    "mp_connector",
    "write_model",
]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class EngineSpec:
    """One engine. `model` is a config.json; a Llama's weights are made on the spot from `weights_seed`."""

    folder: pathlib.Path
    model: dict[str, Any] = field(default_factory=lambda: dict(TINY_LLAMA))
    connector: dict[str, Any] | None = None
    kvcache_gib: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    multiprocess: bool = False
    weights_seed: int = 0


@dataclass(frozen=True)
class Output:
    """`logprobs`: per generated token, the chosen token's and the top ones' logprobs."""

    token_ids: list[int]
    logprobs: list[dict[int, float]]
    num_cached_tokens: int
    finish_reason: str | None
    kv_transfer_params: dict[str, Any] | None = None


def mp_connector(port: int, **extra: Any) -> dict[str, Any]:
    """The kv-transfer-config a user would write."""
    settings = {"lmcache.mp.port": port, "lmcache.mp.heartbeat_interval": 0.5}
    settings.update({f"lmcache.mp.{key}": value for key, value in extra.items()})
    return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": settings}


class Gate:
    """Holds a thread of another process at a named step of the transfer protocol, through two files."""

    def __init__(self, folder: pathlib.Path, step: str) -> None:
        self.step = step
        self._held = folder / f"{step}.held"
        self._open = folder / f"{step}.open"

    def reached(self, step: str) -> None:
        """In the process that is held: a `StepObserver`. Opens by itself in the end."""
        if step != self.step or self._open.exists():
            return
        self._held.touch()
        deadline = time.monotonic() + 60.0
        while not self._open.exists() and time.monotonic() < deadline:
            time.sleep(0.002)

    def wait_until_held(self, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._held.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody reached {self.step}")
            time.sleep(0.005)

    def open(self) -> None:
        self._open.touch()


class EngineProcess:
    """The parent's handle. Every call may raise RuntimeError with the child's traceback."""

    def __init__(self, spec: EngineSpec, timeout_s: float = 300.0) -> None:
        from lmcache.testing.vllm_child import serve

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lmcache.testing.vllm_preload"])
        self._pipe, child = context.Pipe()
        self._timeout_s = timeout_s
        self.process = context.Process(target=serve, args=(spec, child), daemon=not spec.multiprocess)
        self.process.start()
        child.close()
        self.answer()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.begin(name, *arguments, **options)
        return self.answer()

    def begin(self, name: str, *arguments: Any, **options: Any) -> None:
        """A call whose answer is collected later."""
        self._pipe.send((name, arguments, options))

    def answer(self) -> Any:
        if not self._pipe.poll(self._timeout_s):
            self.kill()
            raise RuntimeError("the engine process did not answer")
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the engine process died with {self.process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def generate(self, prompts: list[list[int]], max_tokens: int = 8, **options: Any) -> list[Output]:
        found: list[Output] = self.call("generate", prompts, max_tokens, **options)
        return found

    def run(self, source: str, **values: Any) -> Any:
        """Run Python inside the engine process; the value of `result` comes back."""
        return self.call("run", source, **values)

    def forget(self) -> None:
        """Make vLLM forget its own prefix cache, so that only the connector can answer."""
        self.call("forget")

    def settle(self) -> None:
        """Step until no save is under way."""
        self.call("settle")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        if self.process.is_alive():
            try:
                self.call("close")
            except (RuntimeError, OSError):
                self.process.kill()
            self.process.join(30)
        if self.process.is_alive():
            self.kill()
        self._pipe.close()
