"""The server that LMCacheMPConnector is pointed at: is it there, does it take us, do we see its pool?"""

from __future__ import annotations

import os
import pathlib
import secrets
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import zmq

from lmcache.cli.doctor.checks_engine import check_chunk_size
from lmcache.cli.doctor.findings import Finding, Level, error, of_line, warning
from lmcache.cli.doctor.subject import Subject
from lmcache.errors import ConfigError, DeclinedError, LMCacheError, RequestRefusedError
from lmcache.integration.vllm.mp_config import MPConnectorConfig, check_transfer_mode, parse_mp_config
from lmcache.memory.mapping import PoolMapping, read_nonce
from lmcache.protocol import messages as m
from lmcache.transport.client import Connection
from lmcache.utils import get_version

_WITHOUT = "vLLM starts, runs without cache, and tries again until a server is there"
_CONTAINER_MARKS = (pathlib.Path("/.dockerenv"), pathlib.Path("/run/.containerenv"))


def load_mp_settings(subject: Subject) -> tuple[MPConnectorConfig | None, list[Finding]]:
    """The settings, if there are any, and what is wrong with them."""
    try:
        config, lines = parse_mp_config(subject.extra)
        check_transfer_mode(subject.extra, subject.environ)
    except ConfigError as refusal:
        return None, [error(str(refusal), "vLLM does not start with it", "correct the value")]
    return config, [of_line(Level.WARNING, line) for line in lines]


def say_hello(config: MPConnectorConfig, timeout_s: float) -> tuple[m.Welcome | None, list[Finding]]:
    """What the server says of itself, or why there is nothing to hear."""
    problem = _why_no_connection(config.url, timeout_s)
    if problem is not None:
        return None, [_unreachable(config.url, problem)]
    connection = None
    try:
        connection = Connection(config.url, secrets.randbits(63) | 1)
        answer = connection.call(m.Hello(config.token), 0, timeout_s)
    except RequestRefusedError as refusal:
        remedy = "name the file of the server's --zmq-token-file in lmcache.mp.token_file"
        is_token = refusal.code == m.ErrorCode.FORBIDDEN
        return None, [error(f"the server at {config.url} refuses us: {refusal}", "", remedy if is_token else "")]
    except (zmq.ZMQError, LMCacheError):
        return None, [_no_answer(config.url, timeout_s)]
    finally:
        if connection is not None:
            connection.close()
    if not isinstance(answer, m.Welcome):
        return None, [error(f"{config.url} answered hello with {type(answer).__name__}", "is it an lmcache server?")]
    return answer, []


def _no_answer(url: str, timeout_s: float) -> Finding:
    return error(
        f"{url} is listened at, but nobody answers there as an lmcache server in {timeout_s:g} s", _WITHOUT,
        "name the ZMQ port of the server (5555 by default), not that of its HTTP API (8080)",
    )  # fmt: skip


def _unreachable(url: str, problem: str) -> Finding:
    port = urlsplit(url).port if url.startswith("tcp") else None
    start = f"`lmcache server{'' if port in (None, 5555) else f' --port {port}'}`"
    return error(
        f"no server can be reached at {url} ({problem})", _WITHOUT,
        f"start {start} on this host, or set lmcache.mp.server_urls to where it listens",
    )  # fmt: skip


def _why_no_connection(url: str, timeout_s: float) -> str | None:
    scheme, _, place = url.partition("://")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(timeout_s)
                probe.connect(place)
        else:
            parts = urlsplit(url)
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout_s).close()
    except OSError as failure:
        return failure.strerror or str(failure)
    return None


def check_pool_is_seen(welcome: m.Welcome) -> Iterator[Finding]:
    """By its id and inode: a folder of that name may be another's, in another /dev/shm."""
    folder = pathlib.Path(welcome.pool_folder)
    try:
        read_nonce(folder)
        PoolMapping(folder, welcome.pool_id, welcome.index_inode).close()
    except DeclinedError as refusal:
        yield error(str(refusal), _why_unseen(folder), "share the folder, or run both as one user")


def _why_unseen(folder: pathlib.Path) -> str:
    if any(mark.exists() for mark in _CONTAINER_MARKS):
        return f"this is a container, whose {folder.parent} is its own unless it is shared with the server's"
    if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
        return "it belongs to another user"
    return f"the server's {folder.parent} is not the one here: it runs in a container or on another host"


def check_welcome(subject: Subject, config: MPConnectorConfig, welcome: m.Welcome) -> Iterator[Finding]:
    yield from check_chunk_size(
        subject, welcome.chunk_size, f"the --chunk-size of the server at {config.url},",
        "start the server with --chunk-size {}",
    )  # fmt: skip
    if config.hash_algorithm and config.hash_algorithm != welcome.hash_algorithm:
        yield error(
            f"lmcache.mp.hash_algorithm is {config.hash_algorithm}, the server's is {welcome.hash_algorithm}",
            "the server is then declined", "leave the key out, or start the server with --hash-algorithm "
            f"{config.hash_algorithm}",
        )  # fmt: skip
    if welcome.server_version != get_version():
        yield warning(
            f"the server runs lmcache {welcome.server_version}, this is {get_version()}",
            "messages between the two may differ", "run both from one release",
        )  # fmt: skip
