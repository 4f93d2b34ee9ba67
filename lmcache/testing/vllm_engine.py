"""A real vLLM on CPU in a child process, driven from a test: one engine per configuration.

Children are forked from a server process that has imported vLLM once. This is the parent's
half; `vllm_child` is the other.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

from lmcache.testing.vllm_child import serve
from lmcache.testing.vllm_spec import EngineSpec, Output


class EngineProcess:
    """The parent's handle. Every call may raise RuntimeError with the child's traceback."""

    def __init__(self, spec: EngineSpec, timeout_s: float = 300.0) -> None:
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
