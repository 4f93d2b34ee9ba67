"""Addresses to listen on: resolved and tried before anything else starts, refused in one line."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from lmcache.errors import ConfigError

_BACKLOG = 2048


def listen(host: str, port: int, host_flag: str, port_flag: str) -> socket.socket:
    """A listening TCP socket. Raises ConfigError, naming the flag at fault."""
    family, address = _resolve(host, port, host_flag)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_refusal(error, host, port, host_flag, port_flag)) from error
    listener.set_inheritable(False)
    return listener


def zmq_url(host: str, port: int) -> str:
    """The URL for ZMQ to bind, after a try whether the address is to be had. IPv4 only."""
    plain_host = "0.0.0.0" if host == "*" else host
    with listen(plain_host, port, "--host", "--port") as listener:
        if listener.family != socket.AF_INET:
            raise ConfigError(f"--host {host} is an IPv6 address; ZMQ listens on IPv4 here")
        return f"tcp://{listener.getsockname()[0]}:{port or '*'}"


def http_url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def _resolve(host: str, port: int, flag: str) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{flag} {host} cannot be resolved to an address: {error}") from error
    ipv4_first = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return ipv4_first[0][0], ipv4_first[0][4]


def _refusal(error: OSError, host: str, port: int, host_flag: str, port_flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{port_flag} {port} is in use on {host}: another lmcache server? Choose another {port_flag}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host_flag} {host} is not an address of this host"
    if error.errno == errno.EACCES:
        return f"{port_flag} {port} may not be used by this user: choose one above 1023"
    return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
