"""The life of the server process: check, listen, open the engine behind, serve, stop.

Whatever can be found wrong is found before anything listens. The package with the HTTP
endpoints is handed in by the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import signal
import socket
import stat
import sys
from collections.abc import Iterator

import uvicorn
import uvloop
from prometheus_client import REGISTRY

from lmcache.config.mp_server import MPServerConfig
from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.management import LivenessConfig
from lmcache.engine.pool import PoolConfig
from lmcache.errors import ConfigError
from lmcache.logging import set_up_logging
from lmcache.server.addresses import http_url, listen, zmq_url
from lmcache.server.announcement import start_lines
from lmcache.server.http_app import make_app
from lmcache.server.lifecycle import EngineOpener, EngineServer
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.server.pool_plan import plan_pool
from lmcache.server.registry import HTTPAPIRegistry
from lmcache.telemetry.exposition import MetricsCollector
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.utils import get_version

logger = logging.getLogger(__name__)

_GRACE_S = 3
_TOKEN_CHARACTERS_MIN = 16
# Whoever stops a whole process group may well tell this process twice.
_SAME_SIGNAL_S = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_server(config: MPServerConfig, endpoints_package: str) -> int:
    """Serve until told to stop; the exit code. Raises LMCacheError where the set-up cannot work."""
    level = config.observability.log_level
    set_up_logging("WARNING" if level == "INFO" else level, "uvicorn")  # its start and stop are told by us
    plan = plan_pool(config.mp, config.storage_manager)
    token = _read_token(config.mp.zmq_token_file)
    url = zmq_url(config.mp.host, config.mp.port)
    for note in plan.notes:
        logger.warning(note)
    local = LocalServerConfig(engine_config(config, plan.config), url, get_version(), token)
    with listen(config.http.http_host, config.http.http_port, "--http-host", "--http-port") as listener:
        return ServerProcess(config, local, HTTPAPIRegistry(endpoints_package), listener).run()


def engine_config(config: MPServerConfig, pool: PoolConfig) -> EngineConfig:
    mp, storage = config.mp, config.storage_manager
    return EngineConfig(
        pool=pool,
        chunk_size=mp.chunk_size,
        hash_algorithm=mp.hash_algorithm,
        session_ttl_s=mp.session_ttl_seconds,
        read_ttl_s=storage.l1_read_ttl_seconds,
        trigger_watermark=storage.eviction_trigger_watermark,
        eviction_ratio=storage.eviction_ratio,
        liveness=LivenessConfig(mp.worker_reap_timeout_seconds, mp.worker_registration_grace_seconds),
    )


def _read_token(path: str | None) -> str | None:
    if path is None:
        return None
    file = pathlib.Path(path)
    try:
        token = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--zmq-token-file {path} cannot be read: {error}") from error
    if len(token) < _TOKEN_CHARACTERS_MIN:
        raise ConfigError(f"--zmq-token-file {path} must hold a token of at least {_TOKEN_CHARACTERS_MIN} characters")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("other users can read the token in %s: chmod 600 %s", path, path)
    return token


class ServerProcess:
    """Runs once, in the main thread, which takes the signals."""

    def __init__(
        self, config: MPServerConfig, local: LocalServerConfig, endpoints: HTTPAPIRegistry, listener: socket.socket
    ) -> None:
        self._config = config
        self._local = local
        self._listener = listener
        self._metrics = MetricRegistry()
        self._threads = PeriodicThreadRegistry()
        self._opener = EngineOpener(self._open_server, self._opened, self._ask_to_stop)
        self._first_signal_s: float | None = None
        app = make_app(config.by_name(), endpoints, self._opener)
        self._http = _SignalFreeServer(
            uvicorn.Config(
                app, http="httptools", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=_GRACE_S,
                access_log=config.observability.log_level == "DEBUG",
            )
        )  # fmt: skip

    def run(self) -> int:
        if self._config.observability.metrics_enabled:
            REGISTRY.register(MetricsCollector(self._metrics))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())
        if self._opener.failure is not None:
            raise self._opener.failure
        logger.info("stopped; the pool is %s", "kept" if self._local.engine.pool.keep else "removed")
        return 0

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        await self._http.serve(sockets=[self._listener])

    def _on_signal(self) -> None:
        """The first asks for a clean stop; one that follows later does not wait for it."""
        now_s = asyncio.get_running_loop().time()
        if self._first_signal_s is None:
            self._first_signal_s = now_s
            logger.info("stopping; another signal forces it")
            self._ask_to_stop()
        elif now_s - self._first_signal_s > _SAME_SIGNAL_S:
            print("lmcache server: forced to stop; the pool is left for the next start", file=sys.stderr, flush=True)
            os._exit(1)

    def _ask_to_stop(self) -> None:
        self._http.should_exit = True

    def _open_server(self) -> EngineServer:
        return LocalServer(self._local, self._metrics, self._threads)

    def _opened(self, server: EngineServer) -> None:
        """What was made so far lives as long as the process: the collector need not look at it again."""
        gc.collect()
        gc.freeze()
        local = self._local
        ipc_url = f"ipc://{local.engine.pool.folder}/zmq.ipc"
        address = http_url(self._listener)
        lines = start_lines(local.version, self._config.mp, server.engine, address, server.loop.endpoint, ipc_url)
        print("\n".join(lines), flush=True)


class _SignalFreeServer(uvicorn.Server):
    """Leaves the signals to the process, which ends with an exit code and not by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
