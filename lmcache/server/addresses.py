"""Where the server listens for ZMQ: tried before anything else starts, refused in one line."""

from __future__ import annotations

import socket

from lmcache.errors import ConfigError
from lmcache.http.listening import listen


def zmq_url(host: str, port: int) -> str:
    """The URL for ZMQ to bind, after a try whether the address is to be had. IPv4 only."""
    plain_host = "0.0.0.0" if host == "*" else host
    with listen(plain_host, port, "--host", "--port") as listener:
        if listener.family != socket.AF_INET:
            raise ConfigError(f"--host {host} is an IPv6 address; ZMQ listens on IPv4 here")
        return f"tcp://{listener.getsockname()[0]}:{port or '*'}"
