"""A `remote_url` as the JSON object of an L2 adapter. Knows no adapter but by its documented fields."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

from lmcache.config.redaction import without_user_info
from lmcache.errors import ConfigError

PLUGIN_TYPES = ("fs", "s3", "redis", "resp", "valkey")
_REDIS_PORT = 6379


def _scheme_of(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def adapter_of_url(url: str) -> dict[str, object]:
    """Without a folder in a URL of `fs`, the object has no `base_path`. Raises ConfigError."""
    make = _MAKERS.get(_scheme_of(url))
    if make is None:
        raise ConfigError(f"remote_url {without_user_info(url)!r} must have one of the schemes {', '.join(SCHEMES)}")
    try:
        parts = urlsplit(url)
        if make is _redis:
            _ = parts.port  # reading it checks it
    except ValueError as error:
        # Its text is not repeated: it may hold what stands before the host.
        raise _unusable(url, "its host or port cannot be read") from error
    if parts.query or parts.fragment:
        raise _unusable(url, "it must not have a query or fragment")
    return make(url, parts)


def _unusable(url: str, reason: str) -> ConfigError:
    return ConfigError(f"remote_url {without_user_info(url)!r} cannot be used: {reason}")


def _fs(url: str, parts: SplitResult) -> dict[str, object]:
    """`fs://host:port/folder`: the host says nothing, the folder is one of this machine."""
    folder = unquote(parts.path)
    return {"type": "fs", "base_path": folder} if folder.strip("/") else {"type": "fs"}


def _object_store(url: str, parts: SplitResult) -> dict[str, object]:
    """A bucket's own host name is understood without the scheme alone."""
    is_host = parts.netloc.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return {"type": "s3", "s3_endpoint": url.partition("://")[2] if is_host else url}


def _redis(url: str, parts: SplitResult) -> dict[str, object]:
    if not parts.hostname:
        raise _unusable(url, "it names no host")
    found: dict[str, object] = {"type": "redis", "host": parts.hostname, "port": parts.port or _REDIS_PORT}
    return (
        found | _login(parts) | _database(url, parts) | ({"tls": True} if parts.scheme in ("rediss", "valkeys") else {})
    )


def _redis_cluster(url: str, parts: SplitResult) -> dict[str, object]:
    """Hosts between commas, which the parser takes for one name."""
    hosts = parts.netloc.rpartition("@")[2].split(",")
    nodes = [host if ":" in host else f"{host}:{_REDIS_PORT}" for host in (each.strip() for each in hosts) if host]
    if not nodes:
        raise _unusable(url, "it names no host")
    return {"type": "redis", "nodes": nodes} | _login(parts)


def _redis_socket(url: str, parts: SplitResult) -> dict[str, object]:
    path = parts.netloc.rpartition("@")[2] + unquote(parts.path)
    if not path:
        raise _unusable(url, "it names no socket")
    return {"type": "redis", "unix_socket_path": path} | _login(parts)


def _login(parts: SplitResult) -> dict[str, object]:
    given = {"username": parts.username, "password": parts.password}
    return {name: unquote(value) for name, value in given.items() if value}


def _database(url: str, parts: SplitResult) -> dict[str, object]:
    name = parts.path.strip("/")
    if name and not (name.isascii() and name.isdigit()):
        raise _unusable(url, "what follows the host must be the number of a database")
    return {"db": int(name)} if name else {}


_MAKERS: dict[str, Callable[[str, SplitResult], dict[str, object]]] = {
    "fs": _fs,
    "file": _fs,
    "s3": _object_store,
    "gs": _object_store,
    "az": _object_store,
    "redis": _redis,
    "rediss": _redis,
    "valkey": _redis,
    "valkeys": _redis,
    "resp": _redis,
    "redis-cluster": _redis_cluster,
    "unix": _redis_socket,
}
SCHEMES = tuple(_MAKERS)
