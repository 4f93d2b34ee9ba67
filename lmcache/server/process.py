"""The life of the server process: check, listen, open the engine behind, serve, stop.

Whatever can be found wrong is found before anything listens. The package with the HTTP
endpoints is handed in by the command line.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys

import uvloop
from prometheus_client import REGISTRY

from lmcache.config.mp_server import MPServerConfig, StorageManagerConfig
from lmcache.engine.cache_server import EngineConfig
from lmcache.engine.management import LivenessConfig
from lmcache.engine.pool import PoolConfig
from lmcache.errors import ConfigError
from lmcache.http.listening import http_url, listen
from lmcache.http.secret_files import read_secret_file
from lmcache.http.server import HTTPServer
from lmcache.l2.registry import L2AdapterSpec
from lmcache.logging import set_up_logging
from lmcache.quota.manager import bytes_of_gb
from lmcache.server.addresses import zmq_url
from lmcache.server.announcement import start_lines
from lmcache.server.http_app import make_app
from lmcache.server.http_front import HTTPFront, prepare_http
from lmcache.server.lifecycle import EngineOpener, EngineServer
from lmcache.server.local_server import LocalServer, LocalServerConfig
from lmcache.server.pool_plan import plan_pool
from lmcache.server.pools import pool_name
from lmcache.server.state_files import quota_file
from lmcache.storage.manager import StorageConfig
from lmcache.storage.prefetch_controller import PrefetchConfig
from lmcache.storage.scrubber import ScrubConfig
from lmcache.telemetry.exposition import MetricsCollector
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.utils import get_version

logger = logging.getLogger(__name__)

_TOKEN_CHARACTERS_MIN = 16
# How long a thread that computes keeps the request loop from the interpreter. With Python's own 5 ms a lookup
# beside a busy tier took 0.94 to 1.30 times what it takes alone, with this 0.92 to 1.15 (benchmarks/busy_tier.py).
_SWITCH_INTERVAL_S = 0.0005
# Whoever stops a whole process group may well tell this process twice.
_SAME_SIGNAL_S = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_server(config: MPServerConfig, endpoints_package: str) -> int:
    """Serve until told to stop; the exit code. Raises LMCacheError where the set-up cannot work."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    level = config.observability.log_level
    set_up_logging("WARNING" if level == "INFO" else level, "uvicorn")  # its start and stop are told by us
    plan = plan_pool(config.mp, config.storage_manager)
    token = _read_token(config.mp.zmq_token_file)
    front = prepare_http(config.http, endpoints_package)
    url = zmq_url(config.mp.host, config.mp.port)
    local = LocalServerConfig(engine_config(config, plan.config), url, get_version(), token)
    with listen(config.http.http_host, config.http.http_port, "--http-host", "--http-port") as listener:
        for note in (*plan.notes, *front.exposure_warnings(listener.getsockname()[0])):
            logger.warning(note)
        return ServerProcess(config, local, front, listener).run()


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
        default_quota_bytes=bytes_of_gb(storage.default_quota_gb),
        quota_file=quota_file(storage.quota_file, pool_name(pool.folder)),
        liveness=LivenessConfig(mp.worker_reap_timeout_seconds, mp.worker_registration_grace_seconds),
        storage=storage_config(storage),
        metrics_sample_rate=config.observability.metrics_sample_rate,
    )


def storage_config(storage: StorageManagerConfig) -> StorageConfig:
    adapters = tuple(spec for spec in storage.l2_adapters if isinstance(spec, L2AdapterSpec))
    return StorageConfig(
        adapters=adapters,
        store_policy=storage.l2_store_policy,
        prefetch_policy=storage.l2_prefetch_policy,
        prefetch=PrefetchConfig(storage.l2_prefetch_max_in_flight),
        scrub=ScrubConfig(storage.l2_scrub_objects_per_second),
        drain_timeout_s=storage.l2_drain_timeout_seconds,
    )


def _read_token(path: str | None) -> str | None:
    if path is None:
        return None
    token = read_secret_file(path, "--zmq-token-file").strip()
    if len(token) < _TOKEN_CHARACTERS_MIN:
        raise ConfigError(f"--zmq-token-file {path} must hold a token of at least {_TOKEN_CHARACTERS_MIN} characters")
    return token


class ServerProcess:
    """Runs once, in the main thread, which takes the signals."""

    def __init__(
        self, config: MPServerConfig, local: LocalServerConfig, front: HTTPFront, listener: socket.socket
    ) -> None:
        self._config = config
        self._local = local
        self._address = http_url(listener, front.scheme)
        self._listener = listener
        self._metrics = MetricRegistry()
        self._threads = PeriodicThreadRegistry()
        self._opener = EngineOpener(self._open_server, self._opened, self._ask_to_stop)
        self._first_signal_s: float | None = None
        http = config.http
        app = make_app(config.by_name(), front.endpoints, self._opener, front.guard, self._members())
        is_debug = config.observability.log_level == "DEBUG"
        self._http = HTTPServer(app, is_debug, http.http_ssl_certfile, http.http_ssl_keyfile)

    def _members(self) -> dict[str, object]:
        """What the endpoints that every process of ours serves find on `app.state`."""
        return {
            "metrics": self._metrics,
            "periodic_threads": self._threads,
            "redact_env": self._config.http.http_redact_env,
            "script_settings": self._config.scripts,
        }

    def run(self) -> int:
        if self._config.observability.metrics_enabled:
            identity = self._config.mp.instance_id
            self._metrics.gauge("target_info", "Who is asked", lambda: {(identity,): 1.0}, "service_instance_id")
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
        lines = start_lines(local.version, self._config.mp, server.engine, self._address, server.loop.endpoint, ipc_url)
        print("\n".join(lines), flush=True)
