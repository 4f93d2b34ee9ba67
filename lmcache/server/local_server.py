"""Engine and ZMQ loop together, without HTTP: the data path as one object with start and stop."""

from __future__ import annotations

import logging
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmcache.engine.cache_server import EngineConfig, MPCacheServer
from lmcache.engine.management import LivenessConfig
from lmcache.errors import ConfigError
from lmcache.protocol.frames import FRAME_BYTES_MAX
from lmcache.protocol.messages import Reply
from lmcache.server.dispatcher import Dispatcher, encode_post
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThread, PeriodicThreadRegistry, ThreadLevel
from lmcache.telemetry.steps import NO_STEPS, StepObserver
from lmcache.transport.server import ServerLoop

logger = logging.getLogger(__name__)

# Earlier servers looked for silence every quarter of its limit. Our reaper also proves deaths, and notices that the
# pool vanished: an engine that died gives back what it was writing, and one that comes again finds a pool, in seconds.
_REAP_INTERVAL_S_MAX = 5.0
_TICK_S = 1.0
_IPC_NAME = "zmq.ipc"


@dataclass(frozen=True, slots=True)
class LocalServerConfig:
    """`url`: where ZMQ listens beside the ipc socket in the pool folder. `token`: asked of every client."""

    engine: EngineConfig
    url: str
    version: str = ""
    token: str | None = None


def reap_interval_s(liveness: LivenessConfig) -> float:
    """A quarter of the limit of silence, 5 s at most; those where silence is no reason to reap."""
    return min(_REAP_INTERVAL_S_MAX, liveness.reap_timeout_s / 4) if liveness.reap_timeout_s else _REAP_INTERVAL_S_MAX


class LocalServer:
    """Opens the pool and binds in the constructor; raises PoolError, ConfigError."""

    def __init__(
        self,
        config: LocalServerConfig,
        metrics: MetricRegistry,
        threads: PeriodicThreadRegistry,
        clock: Callable[[], float] = time.monotonic,
        steps: StepObserver = NO_STEPS,
    ) -> None:
        self.threads = threads
        self.engine = MPCacheServer(config.engine, metrics, self._post, clock, steps)
        ipc_path = self._ipc_path = config.engine.pool.folder / _IPC_NAME
        self._ipc_boot_id = self.engine.boot_id
        self.ipc_url = f"ipc://{ipc_path}"
        dispatcher = Dispatcher(self.engine, config.version, self.ipc_url, config.token, self._post_frame)
        try:
            ipc_path.unlink(missing_ok=True)
            self.loop = ServerLoop([self.ipc_url, config.url], dispatcher.handle, self._tick, _TICK_S, FRAME_BYTES_MAX)
            self._open_to_group(ipc_path)
        except BaseException:
            # What an earlier server left behind is not lost to a start that failed.
            self.engine.close(keep=self.engine.pool.files.is_adopted or None)
            raise

    def _open_to_group(self, ipc_path: pathlib.Path) -> None:
        access = self.engine.config.pool.access
        if access.group_id is not None:
            os.chown(ipc_path, -1, access.group_id)
        ipc_path.chmod(access.file_mode)

    def start(self) -> None:
        """Engines are served from L1 at once; it returns when the tiers are there, or have been waited for."""
        reap_s = reap_interval_s(self.engine.config.liveness)
        self.loop.start()
        self.threads.start(self.engine.eviction_thread)
        self.threads.start(
            PeriodicThread("lmcache-mp-worker-reaper", ThreadLevel.MEDIUM, reap_s, self.engine.reap_cycle)
        )
        self.engine.storage.start(self.threads)

    def _post(self, peer: bytes, message: Reply) -> None:
        self.loop.post(peer, encode_post(self.engine, message))

    def _post_frame(self, peer: bytes, frame: bytes) -> None:
        self.loop.post(peer, frame)

    def _tick(self) -> None:
        """A pool folder that was removed and made anew lacks the ipc socket: listen there again."""
        if self._ipc_boot_id == self.engine.boot_id:
            return
        with self.engine.mutex:  # whoever makes the folder anew holds it until the folder is there
            self._ipc_boot_id = self.engine.boot_id
            try:
                self.loop.rebind(self.ipc_url)
                self._open_to_group(self._ipc_path)
            except (ConfigError, OSError) as error:
                logger.error("engines on this host cannot connect: %s", error)

    def stop(self, keep: bool | None = None) -> None:
        """Answer whoever waits, and then no more; hand over what waits for L2, let go of the pool."""
        if self.loop.is_alive:
            self.engine.answer_waiting()
        self.loop.stop()
        self.engine.storage.close()
        self.threads.stop_all()
        self.engine.close(keep)
