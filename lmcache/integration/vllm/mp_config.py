"""The connector's settings: `lmcache.mp.*` keys of kv_connector_extra_config, parsed once.

Unknown keys are named with the nearest known one; keys whose promise cannot be kept are named too.
"""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmcache.errors import ConfigError

_PREFIX = "lmcache.mp."
_PORT = 5555

# Documented keys that change nothing here, and why.
_WITHOUT_MEANING = {
    "nonblocking_lookup_status": "lookups never block",
    "isolated_ipc": "no device handle travels between processes",
    "use_vmm_api": "no device handle travels between processes",
    "eager_prefetch": "the server fetches from its tiers by itself",
    "lazy_offload": "saves are copied as soon as they are computed",
    "transfer_intermediate_tensors": "only KV pages are kept",
    "autostart": "start `lmcache server` yourself",
    "autostart.server_args": "start `lmcache server` yourself",
    "autostart.wait_timeout": "start `lmcache server` yourself",
}
_OFF_VALUES: tuple[object, ...] = (None, False, "", "false", "False", [])


@dataclass(frozen=True, slots=True)
class MPConnectorConfig:
    """Times in seconds. `url` is where the server's ZMQ socket listens.

    `lookup_wait_s` bounds how long one scheduler step may wait for an answer;
    `lookup_timeout_s` how long a request may wait over several steps before it is a miss;
    `prefetch_timeout_s` how much longer while the server fetches it from its tiers.
    """

    url: str = f"tcp://localhost:{_PORT}"
    token: str = ""
    mq_timeout_s: float = 5.0
    heartbeat_s: float = 10.0
    hash_algorithm: str = ""
    save_decode_cache: bool = False
    model_version: str = ""
    load_mode: str = "async"
    copy_threads: int = 1
    lookup_wait_s: float = 0.0008
    lookup_timeout_s: float = 1.0
    prefetch_timeout_s: float = 10.0
    load_timeout_s: float = 30.0
    store_timeout_s: float = 60.0
    pending_store_gb: float = 8.0
    held_blocks_fraction: float = 0.25
    load_failure_policy: str = "recompute"


def parse_mp_config(extra: Mapping[str, object]) -> tuple[MPConnectorConfig, list[str]]:
    """The settings, and one line for each key that will not do what its writer hopes.

    Raises ConfigError, naming the key and what it may hold.
    """
    values: dict[str, object] = {}
    warnings: list[str] = []
    given = {key[len(_PREFIX) :]: value for key, value in extra.items() if key.startswith(_PREFIX)}
    for key, value in given.items():
        if key in _PARSERS:
            field_name, parse = _PARSERS[key]
            values[field_name] = parse(_PREFIX + key, value)
        elif key in _WITHOUT_MEANING:
            if value not in _OFF_VALUES and key != "nonblocking_lookup_status":
                warnings.append(f"{_PREFIX}{key} has no effect: {_WITHOUT_MEANING[key]}")
        elif key not in _ADDRESS_KEYS:
            warnings.append(_unknown(key))
    url, more = _server_url(given)
    warnings += more
    return MPConnectorConfig(url=url, **values), warnings  # type: ignore[arg-type]


def _unknown(key: str) -> str:
    nearest = difflib.get_close_matches(key, KNOWN_KEYS, n=1)
    hint = f"; did you mean {_PREFIX}{nearest[0]}?" if nearest else ""
    return f"unknown setting {_PREFIX}{key} is ignored{hint}"


def _server_url(given: Mapping[str, object]) -> tuple[str, list[str]]:
    urls = given.get("server_urls")
    if urls:
        listed = urls.split(",") if isinstance(urls, str) else urls
        if not isinstance(listed, (list, tuple)) or not all(isinstance(url, str) and url.strip() for url in listed):
            raise ConfigError(f"{_PREFIX}server_urls must be a list or comma-separated string of URLs (got {urls!r})")
        several = [f"{_PREFIX}server_urls names {len(listed)} servers; the first is used"] if len(listed) > 1 else []
        return _checked_url(_PREFIX + "server_urls", _with_scheme(listed[0].strip())), several
    host = _text(_PREFIX + "host", given.get("host", "tcp://localhost"))
    port = _integer(1, 65535)(_PREFIX + "port", given.get("port", _PORT))
    return _checked_url(_PREFIX + "host", f"{_with_scheme(host)}:{port}"), []


def _with_scheme(host: str) -> str:
    return host if "://" in host else f"tcp://{host}"


def _checked_url(key: str, url: str) -> str:
    """A URL that ZMQ can connect to: tcp://host:port, or ipc://path."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    is_tcp = scheme == "tcp" and bool(host) and port.isdecimal() and 0 < int(port) < 65536
    if not is_tcp and not (scheme == "ipc" and rest.startswith("/")):
        raise ConfigError(f"{key} must give tcp://host:port or ipc:///path (got {url!r})")
    return url


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a string that is not empty (got {value!r})")
    return value


def _token_file(key: str, value: object) -> str:
    path = pathlib.Path(_text(key, value))
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error}") from error


def _flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise ConfigError(f"{key} must be true or false (got {value!r})")


def _choice(*allowed: str) -> Callable[[str, object], str]:
    def parse(key: str, value: object) -> str:
        if value not in allowed:
            raise ConfigError(f"{key} must be one of {', '.join(allowed)} (got {value!r})")
        return str(value)

    return parse


def _transfer_mode(key: str, value: object) -> str:
    if value == "lmcache_driven":
        raise ConfigError(f"{key}: the engine copies its own pages here; use auto or engine_driven")
    return _choice("auto", "engine_driven")(key, value)


def _number(low: float, high: float) -> Callable[[str, object], float]:
    def parse(key: str, value: object) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else None  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = None
        if number is None or not low <= number <= high:
            raise ConfigError(f"{key} must be a number from {low:g} to {high:g} (got {value!r})")
        return number

    return parse


def _integer(low: int, high: int) -> Callable[[str, object], int]:
    def parse(key: str, value: object) -> int:
        number = _number(low, high)(key, value)
        if number != int(number):
            raise ConfigError(f"{key} must be a whole number from {low} to {high} (got {value!r})")
        return int(number)

    return parse


_ADDRESS_KEYS = ("server_urls", "host", "port", "mp_transfer_mode")
_PARSERS: dict[str, tuple[str, Callable[[str, object], object]]] = {
    "token_file": ("token", _token_file),
    "mq_timeout": ("mq_timeout_s", _number(0.01, 3600)),
    "heartbeat_interval": ("heartbeat_s", _number(0.05, 3600)),
    "hash_algorithm": ("hash_algorithm", _choice("blake3", "sha256_cbor")),
    "save_decode_cache": ("save_decode_cache", _flag),
    "model_version": ("model_version", _text),
    "load_mode": ("load_mode", _choice("async", "sync")),
    "copy_threads": ("copy_threads", _integer(1, 64)),
    "lookup_wait": ("lookup_wait_s", _number(0, 1)),
    "lookup_timeout": ("lookup_timeout_s", _number(0.01, 60)),
    "prefetch_timeout": ("prefetch_timeout_s", _number(0, 600)),
    "load_timeout": ("load_timeout_s", _number(0.1, 3600)),
    "store_timeout": ("store_timeout_s", _number(0.1, 3600)),
    "pending_store_gb": ("pending_store_gb", _number(0, 1 << 20)),
    "held_blocks_fraction": ("held_blocks_fraction", _number(0, 1)),
    "load_failure_policy": ("load_failure_policy", _choice("recompute", "fail")),
}
# Without the prefix.
KNOWN_KEYS = (*_PARSERS, *_ADDRESS_KEYS, *_WITHOUT_MEANING)


def check_transfer_mode(extra: Mapping[str, object], environment: Mapping[str, str]) -> None:
    """Refuse a transfer mode we do not have, wherever it was set."""
    value = extra.get(_PREFIX + "mp_transfer_mode", environment.get("LMCACHE_MP_TRANSFER_MODE", "auto"))
    _transfer_mode(_PREFIX + "mp_transfer_mode", value)
