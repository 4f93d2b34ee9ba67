"""`lmcache server`: flags to settings, then the process. Every flag of earlier servers is known here."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable
from typing import Any

import click

from lmcache.cli.foreign_flags import FOREIGN_FLAGS, refuse_value, warnings_for
from lmcache.config.mp_server import (
    CoordinatorConfig,
    HTTPConfig,
    MPConfig,
    MPServerConfig,
    ObservabilityConfig,
    StorageManagerConfig,
)
from lmcache.errors import ConfigError
from lmcache.logging import LEVELS, set_up_logging

logger = logging.getLogger(__name__)

# Where the HTTP endpoints are; the server below never imports them by itself.
ENDPOINTS_PACKAGE = "lmcache.v1.multiprocess.http_apis"
# The flags of earlier servers that take any number of values, none included.
_MANY_VALUES = ("--script-allowed-imports", "--runtime-plugin-locations")
_ENGINE_TYPES = ("default",)
_TRANSFER_MODES = ("auto", "engine_driven")
_TRANSPORTS = ("zmq",)

Decorator = Callable[[Callable[..., int]], Callable[..., int]]


class _ServerCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(args))


def _one_value_each(arguments: list[str]) -> list[str]:
    """`--flag a b` becomes `--flag a --flag b`, and `--flag` alone nothing, for a flag that takes many."""
    result: list[str] = []
    flag: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            flag = argument if argument in _MANY_VALUES else None
        elif flag is not None:
            result.append(flag)
        if argument != flag:
            result.append(argument)
    return result


def _options(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _field(group: type, flag: str, help_text: str, **settings: Any) -> Decorator:
    """An option for a field of a settings group, which says what it is when nothing is given."""
    default = _default_of(group, _parameter(flag))
    return click.option(flag, help=help_text, default=default, show_default=default is not None, **settings)


def _default_of(group: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    return None if field.default is dataclasses.MISSING else field.default


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _mp(flag: str, help_text: str, **settings: Any) -> Decorator:
    return _field(MPConfig, flag, help_text, **settings)


def _storage(flag: str, help_text: str, **settings: Any) -> Decorator:
    return _field(StorageManagerConfig, flag, help_text, **settings)


_MP_OPTIONS = _options(
    _mp("--instance-id", "Identity of this server for coordinators and telemetry; a random one by default."),
    _mp("--host", "Address of the ZMQ socket. Beyond loopback it needs --zmq-token-file."),
    _mp("--port", "Port of the ZMQ socket."),
    _mp("--zmq-token-file", "File with a token that every client must present."),
    _mp("--chunk-size", "Tokens per stored chunk."),
    _mp("--hash-algorithm", "How chunks are hashed: blake3, sha256_cbor."),
    _mp("--shm-name", "Name of the shared-memory pool; after user and port by default."),
    _mp("--session-ttl-seconds", "Idle time after which a request's session ends."),
    _mp("--worker-reap-timeout-seconds", "Silence after which a worker is given up; 0: never."),
    _mp("--worker-registration-grace-seconds", "The same for a worker that has not pinged yet."),
    _mp("--script-allowed-imports", "Modules that a script sent to /run_script may import.", multiple=True),
    click.option("--engine-type", default=_ENGINE_TYPES[0], hidden=True),
    click.option("--supported-transfer-mode", default=_TRANSFER_MODES[0], hidden=True),
    click.option("--transport", default=_TRANSPORTS[0], hidden=True),
)
_STORAGE_OPTIONS = _options(
    _storage("--l1-size-gb", "Size of L1 in GiB. By default that of the pool the last run left, else half of what "
             "is free, 4 at most.", type=float),
    _storage("--l1-keep", "Keep the pool at a clean stop, for the next start.", is_flag=True),
    _storage("--l1-group", "Group that may use the pool besides this user."),
    _storage("--numa-interleave", "Spread the pool over all NUMA nodes.", is_flag=True),
    _storage("--l1-align-bytes", "Alignment of objects, a divisor of 4096."),
    _storage("--l1-write-ttl-seconds", "Time a store may take."),
    _storage("--l1-read-ttl-seconds", "Time a promised load may take."),
    _storage("--eviction-policy", "Which object goes first: LRU, IsolatedLRU (within quotas per tenant), ARC, S3-FIFO, "
             "LFU, FIFO, MRU, noop (none)."),
    _storage("--default-quota-gb", "What a tenant without a quota may keep, in GB of 1024^3 bytes, where quotas are "
             "honoured."),
    _storage("--quota-file", "File that quotas survive a restart in; by default after the pool's name, in the "
             "user's state folder."),
    _storage("--eviction-trigger-watermark", "Share of L1 above which objects are evicted ahead of need; by default "
             "only as much is evicted as is needed.", type=float),
    _storage("--eviction-ratio", "Share of all objects that one such cycle evicts."),
)  # fmt: skip
_L2_OPTIONS = _options(
    click.option("--l2-adapter", multiple=True, metavar="JSON",
                 help="An L2 adapter, such as '{\"type\": \"fs\", \"base_path\": \"/mnt/kv\"}'; repeatable."),
    _storage("--l2-store-policy", "Where a new object goes: default (to every adapter), skip_l1 (and L1 lets go)."),
    _storage("--l2-prefetch-policy", "Which adapter loads, and what stays in L1: default (the first that has it; gone "
             "with its reader), retain (it stays), first (the adapter that answers first)."),
    _storage("--l2-prefetch-max-in-flight", "Prompts fetched from L2 at once."),
    _storage("--l2-scrub-objects-per-second", "Stored objects verified in the background; 0: none."),
    _storage("--l2-drain-timeout-seconds", "How long a clean stop waits for objects on their way to L2."),
)  # fmt: skip
_PROCESS_OPTIONS = _options(
    _field(HTTPConfig, "--http-host", "Address of the HTTP API."),
    _field(HTTPConfig, "--http-port", "Port of the HTTP API."),
    _field(HTTPConfig, "--http-auth-token-file", "File with lines `<role> <token> [name]`, roles read, operate, admin: "
           "whoever calls the HTTP API must send such a token, but for / and /healthcheck."),
    _field(HTTPConfig, "--http-redact-env", "Show *** at GET /env for what looks secret, and for the user in a URL.",
           is_flag=True),
    _field(HTTPConfig, "--http-script-timeout-seconds", "Time that a script sent to /run_script may take."),
    click.option("--http-disable", multiple=True, metavar="NAME,...",
                 help="Endpoints that are not served: modules (env, run_script, ...) or paths."),
    click.option("--http-extra-apis", multiple=True, metavar="DIR",
                 help="Folder with further endpoint modules *_api.py; may be given several times."),
    _field(HTTPConfig, "--http-ssl-certfile", "PEM certificate chain: serve https instead of http."),
    _field(HTTPConfig, "--http-ssl-keyfile", "Its unencrypted key, where that is a file of its own."),
    _field(ObservabilityConfig, "--log-level", "What is logged to stderr.",
           type=click.Choice(LEVELS, case_sensitive=False), envvar="LMCACHE_LOG_LEVEL"),
    _field(ObservabilityConfig, "--metrics-sample-rate", "Share of chunks whose life in L1 is measured."),
    click.option("--disable-metrics", is_flag=True, help="Leave our metrics out of /metrics."),
    click.option("--disable-observability", is_flag=True, hidden=True),
)  # fmt: skip
_FOREIGN_OPTIONS = _options(
    *(
        click.option(flag.name, flag.parameter, multiple=True, hidden=True, envvar=flag.variable)
        if flag.takes_value
        else click.option(flag.name, flag.parameter, is_flag=True, hidden=True)
        for flag in FOREIGN_FLAGS
    )
)


@click.command("server", cls=_ServerCommand)
@_MP_OPTIONS
@_STORAGE_OPTIONS
@_L2_OPTIONS
@_PROCESS_OPTIONS
@_FOREIGN_OPTIONS
def command(**given: Any) -> int:
    """Run the cache server that vLLM connects to.

    Flags of earlier servers that are not listed are accepted too: those without a meaning
    here are named in a warning, those that could not be honoured stop the start.
    """
    config, warnings = parse(given)
    set_up_logging(config.observability.log_level)
    for line in warnings:
        logger.warning(line)
    from lmcache.server.process import run_server  # not before the flags are known to be good

    return run_server(config, ENDPOINTS_PACKAGE)


def parse(given: dict[str, Any]) -> tuple[MPServerConfig, list[str]]:
    """The settings, and one line for each flag that will not do what its writer hopes. Raises ConfigError."""
    warnings = warnings_for(given)
    given = {**given, "eviction_policy": _policy_name(given["eviction_policy"])}
    _check_choices(given)
    storage = StorageManagerConfig(
        **{**_values_of(StorageManagerConfig, given), "l2_adapters": _parse_adapters(given["l2_adapter"])}
    )
    mp_values = _values_of(MPConfig, given)
    mp_values["instance_id"] = given["instance_id"] or str(uuid.uuid4())
    if given["hash_algorithm"] == "builtin":
        mp_values["hash_algorithm"] = "blake3"
        warnings.append("--hash-algorithm builtin differs between processes; blake3 is used instead")
    default_ratio = _default_of(StorageManagerConfig, "eviction_ratio")
    if storage.eviction_trigger_watermark is None and storage.eviction_ratio != default_ratio:
        warnings.append("--eviction-ratio has no effect without --eviction-trigger-watermark")
    config = MPServerConfig(
        MPConfig(**mp_values),
        storage,
        ObservabilityConfig(
            given["log_level"].upper(),
            not (given["disable_metrics"] or given["disable_observability"]),
            given["metrics_sample_rate"],
        ),
        _http_config(given),
        CoordinatorConfig(),
    )
    return config, warnings


def _http_config(given: dict[str, Any]) -> HTTPConfig:
    disabled = tuple(name for text in given["http_disable"] for name in text.replace(",", " ").split())
    return HTTPConfig(**{**_values_of(HTTPConfig, given), "http_disable": disabled})


def _values_of(group: type, given: dict[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in dataclasses.fields(group) if field.name in given}


def _parse_adapters(texts: tuple[str, ...]) -> tuple[object, ...]:
    from lmcache.l2.registry import parse_adapters

    return parse_adapters(texts)


def _policy_name(given: str) -> str:
    """As the policy writes itself, whatever case the name came in; one that is unknown stays for the check."""
    from lmcache.eviction import policy_name

    try:
        return policy_name(given)
    except ConfigError:
        return given


def _check_choices(given: dict[str, Any]) -> None:
    from lmcache.core.hashing import ALGORITHM_NAMES
    from lmcache.eviction import policy_names
    from lmcache.storage.prefetch_policies import prefetch_policy_names
    from lmcache.storage.store_policies import store_policy_names

    for flag, allowed in (
        ("--eviction-policy", tuple(policy_names())),
        ("--hash-algorithm", (*ALGORITHM_NAMES, "builtin")),
        ("--engine-type", _ENGINE_TYPES),
        ("--supported-transfer-mode", _TRANSFER_MODES),
        ("--transport", _TRANSPORTS),
        ("--l2-store-policy", tuple(store_policy_names())),
        ("--l2-prefetch-policy", tuple(prefetch_policy_names())),
    ):
        value = given[_parameter(flag)]
        refuse_value(flag, value)
        if value not in allowed:
            raise ConfigError(f"{flag} must be one of {', '.join(allowed)} (got {value!r})")
