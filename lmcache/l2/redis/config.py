"""Settings of the Redis adapter. The only place where its environment variables are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError
from lmcache.l2.fields import flag, not_negative, positive, text, whole_number

ENV_PREFIX = "LMCACHE_RESP_"
_PORT_MAX = 65535
_WORKERS_MAX = 256
# What may stand in a pattern of SCAN without a meaning of its own; no `@`, which ends the prefix.
_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """One way to the server: `host` and `port`, or `unix_socket_path`, or `nodes`, addresses
    `host:port` of a cluster from which the others are learnt.

    Where the way is not told, host and port come from the environment; user name and password
    do where they are not given. `max_capacity_gb` in GiB, 0: unlimited. `ttl_seconds` after it
    was stored an object is gone; 0: never.
    """

    host: str | None = None
    port: int | None = None
    nodes: tuple[str, ...] | list[str] = ()
    unix_socket_path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_verify: bool = True
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    prefix: str = "lmcache"
    num_workers: int = 8
    max_capacity_gb: float = 0
    ttl_seconds: float = 0
    socket_timeout_s: float = 10
    connect_timeout_s: float = 3

    def __post_init__(self) -> None:
        self._fill_from(os.environ)
        self._check_way()
        self._check_login()
        self._check_tls()
        if not isinstance(self.prefix, str) or _PREFIX.fullmatch(self.prefix) is None:
            raise ConfigError(f"prefix must be 1 to 128 of the characters A-Z a-z 0-9 _ . : / - (got {self.prefix!r})")
        whole_number("num_workers", self.num_workers)
        if self.num_workers > _WORKERS_MAX:
            raise ConfigError(f"num_workers must be at most {_WORKERS_MAX} (got {self.num_workers})")
        not_negative("max_capacity_gb", self.max_capacity_gb)
        not_negative("ttl_seconds", self.ttl_seconds)
        positive("socket_timeout_s", self.socket_timeout_s)
        positive("connect_timeout_s", self.connect_timeout_s)

    def _fill_from(self, environ: Mapping[str, str]) -> None:
        """Once, here at the edge; an empty variable is as good as none."""
        given: dict[str, object] = {"username": self.username, "password": self.password}
        if not self.nodes and self.unix_socket_path is None:
            given |= {"host": self.host, "port": self.port}
        for name, value in given.items():
            found = environ.get(ENV_PREFIX + name.upper())
            if value is None and found:
                object.__setattr__(self, name, _port_of(found) if name == "port" else found)

    def _check_way(self) -> None:
        is_host_given = self.host is not None or self.port is not None
        if is_host_given + bool(self.nodes) + (self.unix_socket_path is not None) > 1:
            raise ConfigError("give host and port, or nodes, or unix_socket_path: only one of them")
        if self.unix_socket_path is not None:
            text("unix_socket_path", self.unix_socket_path)
        elif self.nodes:
            if not isinstance(self.nodes, list | tuple):
                raise ConfigError(f'nodes must be a list such as ["10.0.0.1:6379"] (got {self.nodes!r})')
            object.__setattr__(self, "nodes", tuple(self.nodes))
            _ = self.addresses
        else:
            for name in ("host", "port"):
                if getattr(self, name) is None:
                    raise ConfigError(
                        f"missing field {name!r}, and {ENV_PREFIX}{name.upper()} is not set "
                        "(nodes or unix_socket_path would do as well)"
                    )
            text("host", self.host)
            _check_port("port", self.port)
        whole_number("db", self.db, smallest=0)
        if self.nodes and self.db:
            raise ConfigError(f"a cluster has only db 0 (got {self.db})")

    def _check_login(self) -> None:
        for name in ("username", "password"):
            value = getattr(self, name)
            # The value is not repeated: it is meant to be a secret.
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name} must be a text that is not empty")
        if self.username is not None and self.password is None:
            raise ConfigError("username needs a password")

    def _check_tls(self) -> None:
        flag("tls", self.tls)
        flag("tls_verify", self.tls_verify)
        files = {name: getattr(self, name) for name in ("tls_ca_file", "tls_cert_file", "tls_key_file")}
        for name, value in files.items():
            if value is not None:
                text(name, value)
                if not self.tls:
                    raise ConfigError(f"{name} needs tls: true")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ConfigError("tls_cert_file and tls_key_file go together: give both or neither")
        if self.tls and self.unix_socket_path is not None:
            raise ConfigError("tls is not for a unix socket")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Of the nodes of a cluster."""
        return [_parse_address(node) for node in self.nodes]

    @property
    def location(self) -> str:
        """For people."""
        if self.nodes:
            return f"the Redis cluster of {', '.join(self.nodes)}"
        return f"Redis at {self.unix_socket_path or f'{self.host}:{self.port}'}"

    @property
    def capacity_bytes(self) -> int:
        return int(self.max_capacity_gb * GIB)

    @property
    def ttl_ms(self) -> int:
        """0: objects do not expire."""
        return max(1, round(self.ttl_seconds * 1000)) if self.ttl_seconds else 0


def _port_of(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ConfigError(f"{ENV_PREFIX}PORT must be a number (got {value!r})")
    return int(value)


def _check_port(name: str, value: object) -> None:
    whole_number(name, value)
    if isinstance(value, int) and value > _PORT_MAX:
        raise ConfigError(f"{name} must be at most {_PORT_MAX} (got {value})")


def _parse_address(node: object) -> tuple[str, int]:
    """`host:port`; an IPv6 address stands in brackets."""
    host, _, port = node.rpartition(":") if isinstance(node, str) else ("", "", "")
    if not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f'nodes must be addresses such as "10.0.0.1:6379" (got {node!r})')
    _check_port(f"the port of {node!r} in nodes", int(port))
    return host.removeprefix("[").removesuffix("]"), int(port)
