"""A real cache server in a process of its own, which a test can question, clear, kill and start again."""

from __future__ import annotations

import multiprocessing
import pathlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from lmcache.testing.ports import free_port

_CHUNK_SIZE = 256
_POOL_BYTES = 256 << 20
_PATIENCE_S = 120.0


class CacheServer:
    """The test's handle. `restart` keeps folder and port, as an operator's restart does."""

    def __init__(
        self,
        folder: pathlib.Path,
        chunk_size: int = _CHUNK_SIZE,
        pool_bytes: int = _POOL_BYTES,
        adapters: Sequence[str] = (),
    ) -> None:
        """`adapters`: L2, as `--l2-adapter` takes it."""
        self.folder = folder
        self.port = free_port()
        self._arguments = (folder, f"tcp://127.0.0.1:{self.port}", chunk_size, pool_bytes, tuple(adapters))
        self.is_running = False

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, *self._arguments), daemon=True)
        self._process.start()
        child.close()
        self._answer()
        self.is_running = True

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self.is_running:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self.is_running = False

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        return self._answer()

    def _answer(self) -> Any:
        assert self._pipe.poll(_PATIENCE_S), "the server does not answer"
        kind, value = self._pipe.recv()
        assert kind == "ok", value
        return value

    def report(self) -> dict[str, int]:
        return self._ask("report")

    def clear(self) -> int:
        return self._ask("clear")

    def roots(self) -> list[str]:
        return self._ask("roots")

    def run(self, source: str) -> Any:
        """Run Python in the server's process, with `engine`; the value of `result` comes back."""
        return self._ask("run", source)

    def wait_until_idle(self, timeout_s: float = _PATIENCE_S) -> dict[str, int]:
        """Nothing locked, written or remembered of any request; fails if that never comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            report = self.report()
            held = {key: report[key] for key in ("read_locked", "writing", "quarantined", "sessions", "batches")}
            if not any(held.values()):
                return report
            assert time.monotonic() < deadline, f"the server still holds {held}"
            time.sleep(0.02)


class _Served:
    def __init__(
        self, folder: pathlib.Path, url: str, chunk_size: int, pool_bytes: int, adapters: Sequence[str]
    ) -> None:
        from lmcache.engine.cache_server import EngineConfig
        from lmcache.engine.pool import PoolConfig
        from lmcache.l2.registry import parse_adapters
        from lmcache.memory.pool_files import Geometry
        from lmcache.server.local_server import LocalServer, LocalServerConfig
        from lmcache.storage.manager import StorageConfig
        from lmcache.telemetry.metrics import MetricRegistry
        from lmcache.telemetry.periodic import PeriodicThreadRegistry

        storage = StorageConfig(parse_adapters(adapters))
        config = EngineConfig(PoolConfig(folder, Geometry.for_pool(pool_bytes)), chunk_size, storage=storage)
        self._server = LocalServer(LocalServerConfig(config, url), MetricRegistry(), PeriodicThreadRegistry())
        self._server.engine.pool.wait_until_populated(30.0)
        self._server.start()

    def report(self) -> dict[str, int]:
        engine = self._server.engine
        with engine.mutex:
            engine.pool.l1.check_integrity()
            report = engine.pool.l1.report()
            return {
                "objects": int(report["total_object_count"]),
                "writing": int(report["write_locked_count"]),
                "read_locked": int(report["read_locked_count"]),
                "quarantined": int(report["quarantined_count"]),
                "sessions": len(engine.sessions),
                "batches": engine.stores.num_open_batches,
                "recovered": engine.pool.recovery.num_ready,
            }

    def clear(self) -> int:
        return self._server.engine.clear(force=True)

    def roots(self) -> list[str]:
        engine = self._server.engine
        with engine.mutex:
            return sorted(known.root.hex() for known in engine.registry.engines.values() if known.root)

    def run(self, source: str) -> Any:
        scope = {"engine": self._server.engine, "result": None}
        with self._server.engine.mutex:
            exec(source, scope)
        return scope["result"]


def _serve(
    pipe: Connection, folder: pathlib.Path, url: str, chunk_size: int, pool_bytes: int, adapters: Sequence[str]
) -> None:
    served = _Served(folder, url, chunk_size, pool_bytes, adapters)
    pipe.send(("ok", None))
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("ok", getattr(served, name)(*arguments)))
        except Exception as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"))
