"""Sockets to listen on: resolved and tried before anything else starts, refused in one line that names the setting."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import stat
from collections.abc import Iterator
from typing import Any

from lmcache.errors import ConfigError

_BACKLOG = 2048
_PORT_MAX = 65535


def listen(host: str, port: int, host_setting: str, port_setting: str, offset: int = 0) -> socket.socket:
    """A listening TCP socket, `offset` ports above the one that was set. Raises ConfigError."""
    shown = f"{port_setting} {port}" + (f" + {offset}" if offset else "")
    if port + offset > _PORT_MAX:
        raise ConfigError(f"{shown} is no port: they end with {_PORT_MAX}")
    family, address = _resolve(host, port + offset, host_setting)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_refusal(error, host, host_setting, port_setting, shown)) from error
    listener.set_inheritable(False)
    return listener


def http_url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


class UnixListener:
    """A listening Unix socket for this user alone, and its file."""

    def __init__(self, path: str, setting: str) -> None:
        """The folder is made; a file that nobody listens on is replaced. Raises ConfigError."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            pathlib.Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _only_one_at_a_time(path):
                _remove_stale(path, setting)
                self.socket.bind(path)
                os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
                self.socket.listen(_BACKLOG)  # nobody can connect before the mode is right
                self._identity = _identity_of(path)
        except ConfigError:
            self.socket.close()
            raise
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"{setting}: cannot listen on {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Take the file away too; one that somebody else has put there since stays. May be called again."""
        self.socket.close()
        with contextlib.suppress(OSError), _only_one_at_a_time(self.path):
            if _identity_of(self.path) == self._identity:
                os.unlink(self.path)


@contextlib.contextmanager
def _only_one_at_a_time(path: str) -> Iterator[None]:
    """Among those who look after sockets in this folder: what one found stale is not yet another's new one."""
    folder = os.open(pathlib.Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: str, setting: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{setting}: {path} is there, and is no socket: choose another {setting}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise ConfigError(f"{setting}: somebody listens on {path} already: choose another {setting}")


def _identity_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _resolve(host: str, port: int, setting: str) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{setting} {host} cannot be resolved to an address: {error}") from error
    ipv4_first = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return ipv4_first[0][0], ipv4_first[0][4]


def _refusal(error: OSError, host: str, host_setting: str, port_setting: str, shown: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{shown} is in use on {host}: another lmcache server? Choose another {port_setting}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host_setting} {host} is not an address of this host"
    if error.errno == errno.EACCES:
        return f"{shown} may not be used by this user: choose one above 1023"
    return f"{shown}: cannot listen on {host}: {os.strerror(error.errno or 0)}"
