"""The application of the internal API: endpoints, guard and state, made of settings. Knows no socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from lmcache.config.engine.views import InternalAPISettings
from lmcache.embedded.manager import EmbeddedManager
from lmcache.http.errors import install_errors
from lmcache.http.guard import GuardConfig, install_guard, read_tokens
from lmcache.http.registry import HTTPAPIRegistry
from lmcache.http.tls import check_certificate
from lmcache.telemetry.exposition import MetricsCollector
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.v1.internal_api_server import common, vllm
from lmcache.v1.internal_api_server.access_log import AccessLog, AccessLogSwitch

TITLE = "LMCache Internal API"
API_VERSION = "1.0.0"

_TOKENS_KEY = "internal_api_server_auth_token_file"
_DISABLE_KEY = "internal_api_server_disable"
_CERT_KEY = "internal_api_server_ssl_certfile"
_KEY_KEY = "internal_api_server_ssl_keyfile"


@dataclass(frozen=True, slots=True)
class InternalApp:
    app: FastAPI
    access_log: AccessLogSwitch

    def follow(self, settings: InternalAPISettings) -> None:
        """What may change while it is served."""
        self.app.state.script_settings = settings.scripts
        self.access_log.follow(settings)


def make_internal_app(settings: InternalAPISettings, manager: EmbeddedManager) -> InternalApp:
    """Reads every file that the settings name. Raises ConfigError, EndpointError."""
    if settings.ssl_certfile is not None:
        check_certificate(settings.ssl_certfile, settings.ssl_keyfile, _CERT_KEY, _KEY_KEY)
    tokens = () if settings.auth_token_file is None else read_tokens(settings.auth_token_file, _TOKENS_KEY)
    endpoints = internal_endpoints()
    endpoints.disable(settings.disable, _DISABLE_KEY)
    app = FastAPI(title=TITLE, version=API_VERSION)
    app.state.lmcache_adapter = manager
    app.state.metrics = manager.metrics
    app.state.prometheus_registry = _prometheus_registry(manager.metrics)
    app.state.periodic_threads = manager.threads
    app.state.redact_env = settings.redact_env
    app.state.script_settings = settings.scripts
    endpoints.install(app)
    install_errors(app)
    own_names = frozenset({settings.host.lower(), socket.gethostname().lower()})
    install_guard(app, GuardConfig(tokens, own_names, _TOKENS_KEY))
    access_log = AccessLogSwitch(settings)
    app.add_middleware(AccessLog, switch=access_log)
    return InternalApp(app, access_log)


def internal_endpoints() -> HTTPAPIRegistry:
    """Raises EndpointError."""
    endpoints = HTTPAPIRegistry(common.__name__)
    endpoints.add_package(vllm.__name__)
    return endpoints


def _prometheus_registry(metrics: MetricRegistry) -> CollectorRegistry:
    """Of this application alone: a process may hold a scheduler and a worker, whose metrics have the same names, and
    what the engine around us counts is served by itself and would be counted twice."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(metrics))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
