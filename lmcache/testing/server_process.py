"""A real LocalServer in a process of its own, whose clock, loops and faults a test controls."""

from __future__ import annotations

import pathlib
import time

import msgspec

from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.management import LivenessConfig
from lmcache.engine.pool import PoolConfig
from lmcache.errors import LMCacheError
from lmcache.memory.pool_files import Geometry
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.testing import control as c
from lmcache.testing.child import serve_orders
from lmcache.testing.faults import FaultObserver
from lmcache.testing.paged_memory import CHUNK_BYTES, CHUNK_SIZE


class ServerProcessConfig(msgspec.Struct, frozen=True):
    """`runs_loops`: whether eviction loop and reaper also run by themselves, beside the test's own cycles."""

    folder: str
    url: str
    num_slots: int
    write_ttl_s: float = 20.0
    session_ttl_s: float = 40.0
    reap_timeout_s: float = 60.0
    lock_fraction: float = 0.5
    runs_loops: bool = False


class _Clock:
    """Monotonic, and ahead of the real one by what the test says."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class _ServerProcess:
    def __init__(self, config: ServerProcessConfig, channel: c.Channel) -> None:
        self._clock = _Clock()
        self._faults = FaultObserver(lambda step: channel.send(c.FaultReached(step)))
        geometry = Geometry.for_pool(config.num_slots * CHUNK_BYTES)
        pool = PoolConfig(pathlib.Path(config.folder), geometry, write_ttl_s=config.write_ttl_s)
        engine = EngineConfig(
            pool, CHUNK_SIZE, session_ttl_s=config.session_ttl_s, lock_fraction=config.lock_fraction,
            liveness=LivenessConfig(config.reap_timeout_s),
        )  # fmt: skip
        self._server = LocalServer(
            LocalServerConfig(engine, config.url), MetricRegistry(), PeriodicThreadRegistry(), self._clock, self._faults
        )
        self._server.engine.pool.wait_until_populated(10.0)
        if config.runs_loops:
            self._server.start()
        else:
            self._server.loop.start()

    is_busy = False

    def turn(self) -> None:
        """Its threads work by themselves."""

    def obey(self, order: c.Message) -> c.Answer:
        engine = self._server.engine
        match order:
            case c.Arm(fault):
                self._faults.arm(fault)
                return c.Done()
            case c.ClearAll(force):
                return c.Done(engine.clear(force))
            case c.Cycle(advance_s, reaps):
                return self._cycle(advance_s, reaps)
            case _:
                raise ValueError(f"a server does not take {order}")

    def _cycle(self, advance_s: float, reaps: bool) -> c.ServerReport:
        engine = self._server.engine
        self._clock.ahead_s += advance_s
        engine.evict_cycle()
        if reaps:
            engine.reap_cycle()
        error = ""
        with engine.mutex:
            try:
                engine.pool.l1.check_integrity()
            except LMCacheError as found:
                error = str(found)
            report = engine.pool.l1.report()
            return c.ServerReport(
                int(report["total_object_count"]), int(report["write_locked_count"]), int(report["quarantined_count"]),
                int(report["read_locked_count"]), len(engine.sessions), len(engine.registry.clients),
                int(report["memory_used_bytes"]), engine.pool.recovery.num_ready, error,
            )  # fmt: skip

    def stop(self, keep: bool) -> None:
        self._server.stop(keep)


def main(channel: c.Channel, config_blob: bytes) -> None:
    """Serve until told to quit, or until the test is gone."""
    process = _ServerProcess(msgspec.msgpack.decode(config_blob, type=ServerProcessConfig), channel)
    serve_orders(channel, process)
