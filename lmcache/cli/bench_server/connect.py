"""Before anything is registered: is a server there, does it take us, and is there room for the run?"""

from __future__ import annotations

import pathlib
import re
import secrets

import zmq

from lmcache.core.sizes import format_bytes
from lmcache.errors import ConfigError, DeadlineExceededError, RequestRefusedError, ServerUnavailableError
from lmcache.integration.synthetic.engine import SyntheticEngine
from lmcache.memory.mapping import read_nonce
from lmcache.protocol import messages as m
from lmcache.transport.client import Connection

DEFAULT_URL = "tcp://localhost:5555"
_DEFAULT_PORT = 5555
_URL = re.compile(r"tcp://[^/\s:]+:\d{1,5}|ipc://\S+")
# A server lets one client hold locks on half of its pool.
_SHARE_OF_POOL_MAX = 0.5
_MEMORY = pathlib.Path("/proc/meminfo")


def full_url(text: str) -> str:
    """`host` and `host:port` are taken for tcp. Raises ConfigError."""
    url = text if "://" in text else f"tcp://{text}" if ":" in text else f"tcp://{text}:{_DEFAULT_PORT}"
    if not _URL.fullmatch(url):
        raise ConfigError(f"--url must be tcp://HOST:PORT or ipc://PATH (got {text!r})")
    return url


def say_hello(url: str, token: str, timeout_s: float) -> m.Welcome:
    """The server's answer, from a pool that this process sees. Raises ServerUnavailableError, RequestRefusedError,
    DeclinedError."""
    try:
        connection = Connection(url, secrets.randbits(63) | 1)
    except zmq.ZMQError as error:
        raise ConfigError(f"--url {url} cannot be used: {error}") from error
    try:
        welcome = connection.call(m.Hello(token), 0, timeout_s)
    except DeadlineExceededError:
        raise ServerUnavailableError(
            f"no lmcache server answers at {url}: start one with `make run` or `lmcache server`, or name another "
            f"with --url"
        ) from None
    except RequestRefusedError as error:
        hint = " (here: --zmq-token-file FILE)" if error.code == m.ErrorCode.FORBIDDEN else ""
        raise RequestRefusedError(error.code, f"{error}{hint}") from None
    finally:
        connection.close()
    if not isinstance(welcome, m.Welcome):
        raise ServerUnavailableError(f"{url} answered hello with {type(welcome).__name__}")
    read_nonce(pathlib.Path(welcome.pool_folder))
    return welcome


def check_own_memory(num_bytes: int) -> None:
    """Raises ConfigError where this machine would run out of memory."""
    try:
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return
    if num_bytes > available:
        raise ConfigError(
            f"the run needs {format_bytes(num_bytes)} of memory for its own pages, {format_bytes(available)} are "
            f"available: fewer --tokens, or a smaller --shape"
        )


def check_pool(engine: SyntheticEngine, request_bytes: int) -> None:
    """Raises ConfigError where a whole request cannot be held for a retrieve."""
    pool_bytes = engine.joined.mapping.geometry.pool_bytes
    if request_bytes > pool_bytes * _SHARE_OF_POOL_MAX:
        raise ConfigError(
            f"a request of {format_bytes(request_bytes)} is more than half of the server's pool of "
            f"{format_bytes(pool_bytes)}: fewer --tokens, or a server with a larger --l1-size-gb"
        )
