"""Where the lookup server of a rank listens: one socket file per engine, kind and rank."""

from __future__ import annotations

import os
import pathlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.errors import ConfigError

DEFAULT_FOLDER = "/tmp/vllm_rpc"
_FOLDER_MODE = 0o1777
# What the kernel takes for the address of a unix socket.
_PATH_BYTES_MAX = 107
# A socket younger than this may be bound, and not listened at yet.
_SETTLED_S = 10.0


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

    def sweep(self, wall_clock: Callable[[], float] = time.time) -> int:
        """Remove this user's sockets of lookups that nobody listens at any more; how many."""
        num_removed = 0
        for path in pathlib.Path(self.folder).glob(f"engine_*_service_{self.kind}_lmcache_rpc_port_*"):
            try:
                status = path.stat(follow_symlinks=False)
                is_settled = wall_clock() - status.st_mtime >= _SETTLED_S
                if status.st_uid == os.geteuid() and path.is_socket() and is_settled and _is_dead(path):
                    path.unlink()
                    num_removed += 1
            except OSError:  # gone between two looks
                continue
        return num_removed


def _is_dead(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # somebody listens, and is busy
            return False
    return False
