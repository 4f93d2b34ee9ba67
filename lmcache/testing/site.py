"""A place for one test's processes: a pool folder and an address of its own, and everything gone at the end."""

from __future__ import annotations

import pathlib
import secrets
import shutil
from types import TracebackType

from lmcache.testing.nursery import Nursery
from lmcache.testing.ports import free_port
from lmcache.testing.processes import PATIENT_S, ChildProcess, EngineHandle, ServerHandle
from lmcache.testing.server_process import ServerProcessConfig

_SHARED_MEMORY = pathlib.Path("/dev/shm")


class Site:
    """A context manager; owned by one thread."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.folder = _SHARED_MEMORY / f"lmcache-test-{secrets.token_hex(6)}"
        self.url = f"tcp://127.0.0.1:{free_port()}"
        self._children: list[ChildProcess] = []

    def start_server(self, num_slots: int = 32, lock_fraction: float = 0.5) -> ServerHandle:
        """On the same folder and address each time: after a kill, the successor."""
        config = ServerProcessConfig(str(self.folder), self.url, num_slots, lock_fraction=lock_fraction)
        server = ServerHandle(self.nursery, config)
        self._children.append(server)
        return server

    def start_engine(
        self, name: str, num_ranks: int = 1, in_pid_namespace: bool = False, patience_s: float = PATIENT_S
    ) -> EngineHandle:
        """Joined. `patience_s`: how long it waits for a server that does not answer."""
        engine = EngineHandle(self.nursery, name, self.url, num_ranks, in_pid_namespace, patience_s=patience_s)
        self._children.append(engine)
        engine.wait_joined()
        return engine

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.close()
        shutil.rmtree(self.folder, ignore_errors=True)
