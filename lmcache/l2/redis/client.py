"""redis-py as the Redis adapter uses it: a client made from settings, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions as said
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from lmcache.errors import BackendError, BackendFullError, ConfigError, CorruptObjectError, LMCacheError
from lmcache.l2.redis.config import RedisConfig
from lmcache.l2.redis.packing import TCPConnection, TLSConnection, UnixConnection

Client = redis.Redis | RedisCluster

# Threads of a tier and of operators; each needs one at a time.
_CONNECTIONS_MAX = 1024
_READ_BYTES = 256 * 1024
_IDLE_CHECK_S = 30
_REASON_CHARS_MAX = 300


def make_client(config: RedisConfig) -> Client:
    """One server is reached with the first command, a cluster here. Raises what redis-py raises."""
    settings: dict[str, Any] = {
        "username": config.username,
        "password": config.password,
        "socket_timeout": config.socket_timeout_s,
        "socket_connect_timeout": config.connect_timeout_s,
        "socket_read_size": _READ_BYTES,
        "health_check_interval": _IDLE_CHECK_S,
        "max_connections": _CONNECTIONS_MAX,
        "protocol": 2,  # what every version and every fork speaks
    }
    if config.nodes:
        return _make_cluster(config, settings)
    # A connection that broke while it was idle is worth one more try; what lasts is the breaker's.
    settings |= {"db": config.db, "retry": Retry(NoBackoff(), 1, (said.ConnectionError,))}
    if config.unix_socket_path is not None:
        settings |= {"connection_class": UnixConnection, "path": config.unix_socket_path}
    else:
        settings |= {"host": config.host, "port": config.port, "socket_keepalive": True, **_transport(config)}
    return redis.Redis.from_pool(redis.ConnectionPool(**settings))


def _make_cluster(config: RedisConfig, settings: dict[str, Any]) -> RedisCluster:
    # Only with a URL does redis-py take a class of connections; the scheme must not choose another.
    (host, port), *others = config.addresses
    url = f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}"
    return RedisCluster(
        url=url,
        startup_nodes=[ClusterNode(*address) for address in others],  # type: ignore[no-untyped-call]
        # A slot that moves, or a node whose replica takes over: worth waiting for a moment.
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3),
        **settings, **_transport(config),
    )  # fmt: skip


def _transport(config: RedisConfig) -> dict[str, Any]:
    if not config.tls:
        return {"connection_class": TCPConnection}
    return {
        "connection_class": TLSConnection,
        "ssl_cert_reqs": "required" if config.tls_verify else "none",
        "ssl_check_hostname": config.tls_verify,
        "ssl_ca_certs": config.tls_ca_file,
        "ssl_certfile": config.tls_cert_file,
        "ssl_keyfile": config.tls_key_file,
    }


def check_writable(client: Client, names: tuple[bytes, bytes], location: str) -> None:
    """Raise unless objects can be written here. Removes what is not there: a command that only a master
    takes, and that a node of a cluster refuses for keys of two slots."""
    try:
        client.unlink(*names)
    except (said.ClusterCrossSlotError, said.MovedError) as error:
        raise ConfigError(
            f"{location} is a node of a cluster: name its addresses in nodes, instead of host and port"
        ) from error


def drop_idle_connections(client: Client) -> None:
    """The name of the server is looked up again for the next one; a cluster's client sees to its own."""
    if isinstance(client, redis.Redis):
        client.connection_pool.disconnect(inuse_connections=False)


@contextmanager
def translated(location: str) -> Iterator[None]:
    """Whatever redis-py raises becomes one of our errors."""
    try:
        yield
    except (said.RedisError, said.RedisClusterException, OSError) as error:
        raise _translation(error, location) from error


def is_other_type(error: BaseException) -> bool:
    """Whether what lies under a key is no string, and so nothing of ours."""
    return isinstance(error, said.ResponseError) and str(error).startswith("WRONGTYPE")


def _translation(error: Exception, location: str) -> LMCacheError:
    reason = str(error).partition("\n")[0][:_REASON_CHARS_MAX] or type(error).__name__
    if is_other_type(error):
        return CorruptObjectError("it is not a string")
    match error:
        case said.OutOfMemoryError():
            return BackendFullError(f"{location} has reached its maxmemory and may not evict ({reason})")
        case said.AuthenticationError() | said.AuthenticationWrongNumberOfArgsError():
            return BackendError(f"{location} refuses the user name or the password ({reason})")
        case said.NoPermissionError():
            return BackendError(
                f"{location} does not allow this user what is needed: GET, SET, STRLEN, UNLINK and SCAN ({reason})"
            )
        case said.ReadOnlyError():
            return BackendError(f"{location} is a replica, which takes no writes: name its master ({reason})")
        case said.BusyLoadingError():
            return BackendError(f"{location} is still loading its data ({reason})")
        case said.TimeoutError() | TimeoutError():
            return BackendError(f"{location} did not answer in time ({reason})")
    return BackendError(f"{location} failed: {reason}")
