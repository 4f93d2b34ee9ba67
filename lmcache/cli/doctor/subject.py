"""What the checks look at, and the host they look around on."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcache.cli.doctor.command_line import VLLMCommand
from lmcache.memory.room import Room, measure_room

IN_PROCESS = "LMCacheConnectorV1"
SERVER = "LMCacheMPConnector"
CONNECTORS = (IN_PROCESS, SERVER)
MP_PREFIX = "lmcache.mp."
ENGINE_PREFIX = "lmcache."
# vLLM's own block sizes where none is chosen.
DEFAULT_BLOCK_SIZES = {"CPU": 128, "GPU": 16}


@dataclass(frozen=True, slots=True)
class Host:
    """`find_vllm`: the version that this environment has installed, or None."""

    find_vllm: Callable[[], str | None]
    shared_memory: pathlib.Path = pathlib.Path("/dev/shm")
    measure: Callable[[pathlib.Path], Room] = measure_room
    timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Subject:
    """`connector`: one of CONNECTORS, or "" where none of ours is asked for. `transfer`: None where vLLM is told
    nothing. `environ` is that of the vLLM process."""

    command: VLLMCommand
    connector: str
    transfer: Mapping[str, Any] | None
    environ: Mapping[str, str]
    host: Host
    config_file: str | None = None
    http_url: str | None = None
    http_token: str = field(default="", repr=False)

    @property
    def extra(self) -> Mapping[str, Any]:
        found = (self.transfer or {}).get("kv_connector_extra_config")
        return found if isinstance(found, dict) else {}

    @property
    def engine_extra(self) -> dict[str, Any]:
        """Without the keys of the other connector."""
        return {key: value for key, value in self.extra.items() if not key.startswith(MP_PREFIX)}
