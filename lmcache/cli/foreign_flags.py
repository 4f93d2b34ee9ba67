"""Flags that start scripts of earlier servers pass: accepted and without effect, or refused with the reason.

A flag whose promise would silently be broken is refused; one that tunes a part we do not
have, or do not need, is ignored with one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmcache.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ForeignFlag:
    """`takes_value`: whether something follows it. `is_refused`: it stops the start."""

    name: str
    reason: str
    takes_value: bool = True
    is_refused: bool = False
    variable: str | None = None

    @property
    def parameter(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


def _ignored(reason: str, *names: str, takes_value: bool = True) -> list[ForeignFlag]:
    return [ForeignFlag(name, reason, takes_value) for name in names]


def _refused(reason: str, *names: str, takes_value: bool = True) -> list[ForeignFlag]:
    return [ForeignFlag(name, reason, takes_value, is_refused=True) for name in names]


def _missing(what: str, instead: str = "") -> str:
    return f"needs {what}, which this release does not have" + (f"; {instead}" if instead else "")


_COORDINATOR = "it tunes the tie to a coordinator, which this release does not have"
_POOL_GROWTH = "the pool's memory is taken in slices behind the start"
_PEERS = "it tunes transfers between servers, which this release does not have"
_NO_PAUSES = "what a start leaves behind is hidden from the garbage collector, whose pauses are too short to watch"
_LOOKUP_LOG = "it tunes the log of lookup hashes, which this release does not have"

FOREIGN_FLAGS: tuple[ForeignFlag, ...] = (
    # Workers of the server
    *_ignored("requests are answered by one loop, copies are made by the engines",
              "--max-workers", "--max-gpu-workers", "--max-cpu-workers", "--grpc-server-workers"),
    *_ignored("there is no gRPC transport", "--disable-grpc-metrics", takes_value=False),
    *_ignored("no device handle travels between processes", "--isolated-ipc", takes_value=False),
    *_ignored("blocks are named by the engine's own connector", "--null-block-id"),
    *_ignored("removed keys are kept for engines that follow them, in a log of fixed length", "--kv-event-log-size"),
    *_ignored("objects of one chunk are kept apart by rank already", "--separate-object-groups", takes_value=False),
    *_refused(_missing("modules loaded into the server"), "--server-module", "--enable"),
    *_refused(_missing("sharing of equal content between keys"), "--enable-dedup-content", takes_value=False),
    *_refused(_missing("blending"), "--enable-segmented-prefix", "--enable-blend-reorder", takes_value=False),
    *_refused(_missing("runtime plugins"), "--runtime-plugin-locations"),
    *_ignored("there are no runtime plugins to configure", "--runtime-plugin-config"),
    *_ignored("/run_script is served unless --http-disable run_script takes it away", "--run-script-api-enabled",
              takes_value=False),
    # Memory
    *_ignored(_POOL_GROWTH, "--l1-use-lazy", "--no-l1-use-lazy", takes_value=False),
    *_ignored(_POOL_GROWTH, "--l1-init-size-gb"),
    *_ignored("the kernel's setting for shared memory decides (/sys/kernel/mm/transparent_hugepage/shmem_enabled)",
              "--l1-use-hugepages", takes_value=False),
    *_refused(_missing("several L1 tiers", "--l1-size-gb sets the size of the one in shared memory"), "--l1-manager"),
    *_refused(_missing("an L1 tier on Device-DAX"), "--l1-devdax-path"),
    *_refused(_missing("an L1 tier on NVMe"), "--gds-l1-path"),
    *_ignored("there is no L1 tier on NVMe to tune", "--gds-l1-backend"),
    *_ignored("there is no L1 tier on NVMe to tune", "--gds-l1-use-direct-io", "--no-gds-l1-use-direct-io",
              takes_value=False),
    # L2
    *_ignored("an adapter's threads tell when they are done", "--periodic-notifier-interval-ms"),
    # Other servers
    *_refused(_missing("transfers between servers"), "--p2p-advertise-url"),
    *_ignored(_PEERS, "--p2p-listen-url", "--p2p-lookup-timeout", "--p2p-load-timeout", "--p2p-transfer-engine"),
    ForeignFlag("--coordinator-url", _missing("the tie to a coordinator"), is_refused=True,
                variable="LMCACHE_COORDINATOR_URL"),
    *_ignored(_COORDINATOR, "--coordinator-advertise-ip", "--coordinator-heartbeat-interval",
              "--coordinator-l2-event-flush-interval", "--coordinator-event-flush-interval",
              "--coordinator-event-transport", "--coordinator-kafka-bootstrap-servers", "--coordinator-kafka-topic",
              "--coordinator-kafka-delivery-timeout", "--coordinator-blend-timeout",
              "--coordinator-blend-match-concurrency"),
    *_ignored(_COORDINATOR, "--coordinator-l2-event-reporting", "--coordinator-event-reporting", takes_value=False),
    # Observability
    *_refused(_missing("traces"), "--enable-tracing", takes_value=False),
    *_refused(_missing("traces"), "--trace-level"),
    *_refused(_missing("a push of metrics", "Prometheus may pull GET /metrics from --http-port"), "--otlp-endpoint"),
    *_refused(_missing("a log of lookup hashes"), "--lookup-hash-log-dir"),
    *_ignored(_LOOKUP_LOG, "--lookup-hash-log-rotation-interval", "--lookup-hash-log-rotation-max-size",
              "--lookup-hash-log-max-files"),
    *_ignored("there are no traces to write", "--trace-output"),
    *_ignored("GET /metrics is served on --http-port", "--prometheus-port"),
    *_ignored("every event is counted where it happens", "--event-bus-queue-size"),
    *_ignored("--log-level decides what is logged", "--disable-logging", "--enable-extra-logging", takes_value=False),
    *_ignored("--log-level decides what is logged", "--extra-logging-interval"),
    *_ignored(_NO_PAUSES, "--enable-gc-monitor", takes_value=False),
    *_ignored(_NO_PAUSES, "--gc-monitor-min-pause-ms", "--gc-monitor-top-objects"),
)  # fmt: skip

# Flags we have, with values we cannot honour.
_REFUSED_VALUES = {
    "--engine-type": {"blend": _missing("blending"), "blend_legacy": _missing("blending")},
    "--supported-transfer-mode": {
        "lmcache_driven": "would have this server touch device memory; engines copy by themselves here (engine_driven)"
    },
    "--transport": {"grpc": _missing("a gRPC transport")},
}


def refuse_value(flag: str, value: str) -> None:
    """Raise ConfigError for a value that is known elsewhere and cannot be honoured here."""
    reason = _REFUSED_VALUES.get(flag, {}).get(value)
    if reason is not None:
        raise ConfigError(f"{flag} {value} {reason}")


def _says_something(value: object) -> bool:
    """Nothing is asked for by what was not given, nor by empty text: the documented way to leave such a thing off,
    and what a start script makes of a variable that is not set."""
    return any(value) if isinstance(value, tuple) else bool(value)


def warnings_for(given: Mapping[str, object]) -> list[str]:
    """One line per foreign flag among `given` (by parameter name); raises ConfigError for a refused one."""
    lines = []
    for flag in FOREIGN_FLAGS:
        if not _says_something(given.get(flag.parameter)):
            continue
        if flag.is_refused:
            source = f" (or {flag.variable} in the environment)" if flag.variable else ""
            raise ConfigError(f"{flag.name}{source} {flag.reason}")
        lines.append(f"{flag.name} has no effect: {flag.reason}")
    return lines
