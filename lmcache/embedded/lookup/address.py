"""Where the lookup server of a rank listens: one socket file per engine, kind and rank."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

from lmcache.errors import ConfigError

DEFAULT_FOLDER = "/tmp/vllm_rpc"
_FOLDER_MODE = 0o1777
# What the kernel takes for the address of a unix socket.
_PATH_BYTES_MAX = 107


@dataclass(frozen=True, slots=True)
class LookupAddress:
    """`port` is a number that tells sockets apart, or a text that the rank is appended to."""

    folder: str
    engine_id: str
    port: int | str = 0
    kind: str = "lookup"

    def path(self, rank: int) -> pathlib.Path:
        """Raises ConfigError if it is longer than a socket's address can be."""
        number = self.port + rank if isinstance(self.port, int) else f"{self.port}{rank}"
        engine_id = self.engine_id.replace("/", "-")
        path = pathlib.Path(self.folder) / f"engine_{engine_id}_service_{self.kind}_lmcache_rpc_port_{number}"
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise ConfigError(
                f"the socket {path} has more than {_PATH_BYTES_MAX} characters: set VLLM_RPC_BASE_PATH to a shorter "
                "folder, or a shorter engine_id in kv_transfer_config"
            )
        return path

    def url(self, rank: int) -> str:
        return f"ipc://{self.path(rank)}"

    def make_folder(self) -> None:
        """The folder may be shared with other users, whose sockets only they can use. Raises ConfigError."""
        folder = pathlib.Path(self.folder)
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(_FOLDER_MODE)
        except OSError as error:
            raise ConfigError(
                f"cannot make the folder {folder} for sockets: {error} (see VLLM_RPC_BASE_PATH)"
            ) from error
