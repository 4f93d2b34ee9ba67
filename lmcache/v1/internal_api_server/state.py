"""What the shared endpoints find on `app.state`, in whichever process they are served. All of it is written here.

Set by whoever makes the application, before it listens:

- `configs`: settings groups by name (`mp`, `storage_manager`, ...); None or absent where there are none to show.
- `metrics`: the `MetricRegistry` that /metrics/reset resets.
- `prometheus_registry`: the `CollectorRegistry` that /metrics shows; absent: the default one of the process.
- `periodic_threads`: the `PeriodicThreadRegistry` with every loop of the process.
- `redact_env`: whether /env hides what looks secret.
- `script_settings`: the `ScriptSettings` of /run_script; another may be set at any time.
- `lmcache_adapter`: the `EmbeddedManager` of the in-process mode, which alone has one.

Made here at first use, one per application: `metrics_rendering`, `script_runner`, `limiters`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from anyio import CapacityLimiter
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from lmcache.config.scripts import ScriptSettings
from lmcache.telemetry.metrics import MetricRegistry
from lmcache.telemetry.periodic import PeriodicThreadRegistry
from lmcache.v1.internal_api_server.rendering import CachedRendering
from lmcache.v1.internal_api_server.scripts import ScriptRunner

# Handlers run on the event loop and in threads.
_making = threading.Lock()
T = TypeVar("T")


def configs(app: FastAPI) -> Mapping[str, object] | None:
    return cast("Mapping[str, object] | None", getattr(app.state, "configs", None))


def metrics(app: FastAPI) -> MetricRegistry:
    return cast(MetricRegistry, app.state.metrics)


def periodic_threads(app: FastAPI) -> PeriodicThreadRegistry:
    return cast(PeriodicThreadRegistry, app.state.periodic_threads)


def redacts_env(app: FastAPI) -> bool:
    return bool(app.state.redact_env)


def script_runner(app: FastAPI) -> ScriptRunner:
    return _made_once(
        app, "script_runner", lambda: ScriptRunner(lambda: cast(ScriptSettings, app.state.script_settings))
    )


def metrics_rendering(app: FastAPI) -> CachedRendering:
    registry = cast(CollectorRegistry, getattr(app.state, "prometheus_registry", REGISTRY))
    return _made_once(
        app, "metrics_rendering", lambda: CachedRendering(lambda: generate_latest(registry), time.monotonic)
    )


def limiter(app: FastAPI, name: str, at_once_max: int) -> CapacityLimiter:
    """For calls that may block: those of one name wait for each other and for nobody else. Belongs to the
    application's event loop, since a process may serve several applications."""
    limiters = _made_once(app, "limiters", lambda: dict[str, CapacityLimiter]())
    with _making:
        if name not in limiters:
            limiters[name] = CapacityLimiter(at_once_max)
        return limiters[name]


def _made_once(app: FastAPI, name: str, make: Callable[[], T]) -> T:
    with _making:
        if not hasattr(app.state, name):
            setattr(app.state, name, make())
        return cast(T, getattr(app.state, name))
