"""What both halves of a real vLLM under test share: specification, output, environment, a gate."""

from __future__ import annotations

import pathlib
import time
from dataclasses import dataclass, field
from typing import Any

from lmcache.testing.vllm_models import TINY_LLAMA

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Else the first request that wants logprobs waits for a C++ compiler, a minute where nothing is in its cache.
    "TORCH_COMPILE_DISABLE": "1",
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


def patient_connector(port: int, **extra: Any) -> dict[str, Any]:
    """For tests: a server that gets no processor for a while is waited for, where a user would rather compute."""
    patience = {"mq_timeout": 10.0, "lookup_timeout": 20.0, "prefetch_timeout": 60.0}
    return mp_connector(port, **(patience | extra))


def embedded_connector(keep_on_reset: bool = False, **settings: Any) -> dict[str, Any]:
    """The same for the in-process mode, all its settings in it."""
    extra = {f"lmcache.{key}": value for key, value in settings.items()}
    extra["keep_on_reset"] = keep_on_reset
    return {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both", "kv_connector_extra_config": extra}


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

    @property
    def is_held(self) -> bool:
        return self._held.exists()

    def wait_until_held(self, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_held:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody reached {self.step}")
            time.sleep(0.005)

    def open(self) -> None:
        self._open.touch()
